"""The compiled half of ``pmdk``, for cffi's API mode: the module ``pmdk._libpmem``.

Owns the C code: bounds, and the order of copies and fences. It must not know what is stored. Every function checks the
range it is given against the mapping, because an address outside of it would end the process. cffi releases the GIL
around each of them.
"""

from cffi import FFI

DECLARATIONS = """
    typedef struct { ...; } pmdk_mapping;

    #define PMEM_FILE_CREATE ...
    #define PMEM_FILE_EXCL ...
    #define PMEM_FILE_SPARSE ...

    pmdk_mapping *pmdk_map(const char *path, size_t length, int flags, unsigned int mode);
    void pmdk_unmap(pmdk_mapping *mapping);
    char *pmdk_base(const pmdk_mapping *mapping);
    size_t pmdk_size(const pmdk_mapping *mapping);
    bool pmdk_is_pmem(const pmdk_mapping *mapping);

    /* These return 0; PMDK_OUTSIDE where the range is not within the mapping; otherwise an errno. */
    #define PMDK_OUTSIDE ...
    int pmdk_append(const pmdk_mapping *mapping, int64_t offset, const char *header, size_t header_length,
                    const char *data, size_t data_length);
    int pmdk_memcpy_persist(const pmdk_mapping *mapping, int64_t offset, int64_t length, const char *data);
    int pmdk_memcpy_nodrain(const pmdk_mapping *mapping, int64_t offset, int64_t length, const char *data);
    int pmdk_persist(const pmdk_mapping *mapping, int64_t offset, int64_t length);
    int pmdk_flush(const pmdk_mapping *mapping, int64_t offset, int64_t length);
    int pmdk_msync(const pmdk_mapping *mapping, int64_t offset, int64_t length);
    void pmem_drain(void);
"""

SOURCE = r"""
    #include <errno.h>
    #include <libpmem.h>
    #include <stdbool.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <string.h>

    #define PMDK_OUTSIDE (-1)

    typedef struct {
        char *base;
        size_t size;
        bool is_pmem;
    } pmdk_mapping;

    /* Returns NULL and leaves errno; then nothing is mapped. */
    static pmdk_mapping *pmdk_map(const char *path, size_t length, int flags, unsigned int mode)
    {
        pmdk_mapping *mapping = malloc(sizeof *mapping);
        int is_pmem;

        if (mapping == NULL)
            return NULL;
        mapping->base = pmem_map_file(path, length, flags, mode, &mapping->size, &is_pmem);
        if (mapping->base == NULL) {
            int error = errno;

            free(mapping);
            errno = error;
            return NULL;
        }
        mapping->is_pmem = is_pmem != 0;
        return mapping;
    }

    static void pmdk_unmap(pmdk_mapping *mapping)
    {
        pmem_unmap(mapping->base, mapping->size);
        free(mapping);
    }

    static char *pmdk_base(const pmdk_mapping *mapping) { return mapping->base; }
    static size_t pmdk_size(const pmdk_mapping *mapping) { return mapping->size; }
    static bool pmdk_is_pmem(const pmdk_mapping *mapping) { return mapping->is_pmem; }

    static bool inside(const pmdk_mapping *mapping, int64_t offset, size_t length)
    {
        return offset >= 0 && (uint64_t)offset <= mapping->size && length <= mapping->size - (uint64_t)offset;
    }

    static bool range_inside(const pmdk_mapping *mapping, int64_t offset, int64_t length)
    {
        return length >= 0 && inside(mapping, offset, (size_t)length);
    }

    static int msync_range(char *base, size_t length)
    {
        /* msync() refuses nothing to do at the very end, where no page may follow. */
        return length == 0 || pmem_msync(base, length) == 0 ? 0 : errno;
    }

    static int pmdk_append(const pmdk_mapping *mapping, int64_t offset, const char *header, size_t header_length,
                           const char *data, size_t data_length)
    {
        char *place;

        if (!inside(mapping, offset, header_length) ||
            !inside(mapping, offset + (int64_t)header_length, data_length))
            return PMDK_OUTSIDE;
        place = mapping->base + offset;
        if (!mapping->is_pmem) {
            if (data_length)
                memmove(place + header_length, data, data_length);
            /* A process that dies here leaves no header without its data: the compiler must not swap the two. */
            __atomic_signal_fence(__ATOMIC_SEQ_CST);
            memmove(place, header, header_length);
            return 0;
        }
        if (data_length) {
            /* Past the caches, so that nothing has to be flushed; the fence comes before any byte of the header. */
            pmem_memcpy(place + header_length, data, data_length, PMEM_F_MEM_NODRAIN | PMEM_F_MEM_NONTEMPORAL);
            pmem_drain();
        }
        pmem_memcpy_persist(place, header, header_length);
        return 0;
    }

    static int pmdk_memcpy_persist(const pmdk_mapping *mapping, int64_t offset, int64_t length, const char *data)
    {
        if (!range_inside(mapping, offset, length))
            return PMDK_OUTSIDE;
        if (mapping->is_pmem) {
            pmem_memcpy_persist(mapping->base + offset, data, (size_t)length);
            return 0;
        }
        memmove(mapping->base + offset, data, (size_t)length);
        return msync_range(mapping->base + offset, (size_t)length);
    }

    static int pmdk_memcpy_nodrain(const pmdk_mapping *mapping, int64_t offset, int64_t length, const char *data)
    {
        if (!range_inside(mapping, offset, length))
            return PMDK_OUTSIDE;
        if (mapping->is_pmem)
            pmem_memcpy_nodrain(mapping->base + offset, data, (size_t)length);
        else
            memmove(mapping->base + offset, data, (size_t)length);
        return 0;
    }

    static int pmdk_persist(const pmdk_mapping *mapping, int64_t offset, int64_t length)
    {
        if (!range_inside(mapping, offset, length))
            return PMDK_OUTSIDE;
        if (!mapping->is_pmem)
            return msync_range(mapping->base + offset, (size_t)length);
        pmem_persist(mapping->base + offset, (size_t)length);
        return 0;
    }

    static int pmdk_flush(const pmdk_mapping *mapping, int64_t offset, int64_t length)
    {
        if (!range_inside(mapping, offset, length))
            return PMDK_OUTSIDE;
        if (mapping->is_pmem)
            pmem_flush(mapping->base + offset, (size_t)length);
        return 0;
    }

    static int pmdk_msync(const pmdk_mapping *mapping, int64_t offset, int64_t length)
    {
        if (!range_inside(mapping, offset, length))
            return PMDK_OUTSIDE;
        return msync_range(mapping->base + offset, (size_t)length);
    }
"""


def _described(*, if_possible: bool) -> FFI:
    ffi = FFI()
    ffi.cdef(DECLARATIONS)
    ffi.set_source("pmdk._libpmem", SOURCE, libraries=["pmem"], optional=if_possible)
    return ffi


# What setup.py chooses from: a failure to compile fails the build, or leaves the module out.
required = _described(if_possible=False)
optional = _described(if_possible=True)
