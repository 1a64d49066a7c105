"""Text that may hold anything, made safe to show on one line.

Owns how unprintable characters of names and messages are written. Pure.
"""


def printable(text: str) -> str:
    """Return *text* with every unprintable character, line ends and undecodable bytes of file names among them,
    written as a Python escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
