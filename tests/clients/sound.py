"""A WAV file made on the spot, for what takes audio."""

import io
import math
import struct
import wave

RATE_HERTZ = 16_000  # what speech models resample to


def tone(seconds: float = 0.5, pitch_hertz: float = 440.0) -> bytes:
    """One channel, 16 bits."""
    samples = (
        int(8000 * math.sin(2 * math.pi * pitch_hertz * number / RATE_HERTZ))
        for number in range(int(seconds * RATE_HERTZ))
    )
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE_HERTZ)
        out.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    return file.getvalue()
