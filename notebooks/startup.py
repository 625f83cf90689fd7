import atexit
import gc

gc.set_threshold(100_000)  # see start: half a second of a kernel's three went into looking for garbage
atexit.register(gc.freeze)  # its end looks through all modules again
