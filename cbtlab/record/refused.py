"""The module's refusal of a call, with its errno and its sentence."""

from __future__ import annotations

import errno
import os

from cbtlab.errors import CbtlabError

# For the errno that os.strerror words badly, where the module has no sentence.
_MEANING = {
    errno.EBUSY: "busy: not suspended, in use, or hooked by another module",
    errno.EOPNOTSUPP: "this kind of device cannot be tracked or suspended",
    errno.ENOENT: "no such tracker or device",
    errno.ENODATA: "nothing there yet",
    errno.ELOOP: "the events would be saved on the tracked volume",
    errno.ESTALE: "it was sealed, and the volume may have been written since",
    errno.EEXIST: "the frozen bitmaps were not cleared, or its generation is attached already",
    errno.ETIMEDOUT: "the volumes were not suspended in time",
    errno.ENOTTY: "the module does not know this call",
}


class Refused(CbtlabError):
    """The module refused a call; ``errno`` as in cbt.h, ``why`` its sentence, or empty."""

    def __init__(self, piece: object, number: int, why: str = "") -> None:
        self.errno = number
        self.why = why
        meaning = why or _MEANING.get(number, os.strerror(number))
        name = errno.errorcode.get(number, str(number))
        super().__init__(piece, f"refused: {meaning} ({name})")
