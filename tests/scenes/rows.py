"""The faults that a gateway meets, by number. A scene is named by the row that it proves."""

from typing import NamedTuple


class Section(NamedTuple):
    """Rows that belong together, and the module of their scenes."""

    title: str
    module: str
    rows: dict[int, str]


SECTIONS = (
    Section(
        "Pods, before the first byte",
        "before_the_first_byte",
        {
            1: "accepts, and never answers",
            2: "refuses the connection",
            3: "swallows the connection",
            4: "closes a fresh connection without a byte",
            5: "closes an idle connection as the request leaves",
            6: "resets before its head",
            7: "dies of a request",
            8: "answers what is not HTTP",
            9: "stops inside its status line",
            11: "floods with interim answers",
            12: "redirects to an address inside",
            13: "refuses our key",
            14: "answers 500, with its reasons",
            15: "answers 500 to one caller only",
            16: "is busy, and says for how long",
            18: "frames its answer in two ways",
            20: "answers 200 with what was not asked for",
        },
    ),
    Section(
        "Pods, in mid-stream",
        "mid_stream",
        {
            22: "ends cleanly, without a finish reason or [DONE]",
            23: "is cut, with an answer that ends by closing",
            24: "closes inside a chunk",
            25: "resets",
            26: "is killed with 200 streams",
            27: "falls silent after the first token",
            28: "drips tokens, within the deadline",
            29: "sends an error event of its own",
            30: "lies about a chunk's size",
            31: "sends a very long event",
            32: "sends broken UTF-8, cut at every byte",
            36: "leaves its usage out",
            37: "lies about its usage",
            39: "finishes only some of the choices",
        },
    ),
    Section(
        "Discovery, balancing, roll-outs",
        "discovery",
        {
            40: "a deletion is missed",
            41: "a watch expires, or versions go backwards",
            42: "a watch is half open",
            43: "the API server is down at the start",
            44: "the API server is down for ten minutes",
            45: "a pod is evicted",
            47: "a pod's list of models hangs",
            48: "all pods restart, one after another",
            49: "all gateways restart, one after another",
            51: "no pod is ready",
            52: "all that is left is ejected",
            53: "a pod flaps",
            54: "a pod is slow",
            55: "a pod fails fast",
            56: "a cold pod joins hot ones",
            58: "a pod claims an address that is none of its own",
            59: "a pod claims models that are none of its own",
        },
    ),
    Section(
        "Redis and limits",
        "limits",
        {
            61: "Redis stands still",
            62: "Redis dies, and comes back empty",
            63: "Redis forgets its scripts",
            65: "keys are evicted, clocks are wrong",
            66: "three replicas, one limit, a thousand requests at once",
            67: "who holds a lease is killed",
            68: "a client leaves half-way through its tokens",
            69: "a million unknown keys",
            70: "a burst at a window's edge",
        },
    ),
    Section(
        "Clients",
        "clients",
        {
            72: "leaves while it waits for the first token",
            73: "leaves at any other moment",
            75: "reads a byte a second",
            77: "sends slowly, or nothing",
            78: "floods with headers",
            79: "ten thousand idle connections",
            81: "more bodies than memory",
            82: "the loop is held up",
            83: "half-closes after its request",
            84: "expects 100-continue",
            86: "sends more, or less, than it said",
            87: "uses another method",
        },
    ),
    Section(
        "Parsing and protocol",
        "protocol",
        {
            88: "request smuggling",
            90: "paths in disguise",
            91: "odd bytes in headers and keys",
            92: "nominates headers to be dropped",
            94: "JSON that means two things",
            95: "a content type that is not meant",
            96: "a million names",
            97: "forges log lines",
            99: "asks for what administrators may",
            100: "a browser from another origin",
            103: "floods the index of prefixes",
            104: "listens at the prefix cache",
        },
    ),
    Section(
        "All at once",
        "compound",
        {
            106: "random faults, for long",
            107: "Redis is lost, in a roll-out, under twice the load",
            108: "every client tries again",
            109: "the clock jumps",
            111: "fifty scrapers",
            112: "an invalid file",
            114: "IPv6",
            115: "a key is exchanged under streams",
        },
    ),
)
ROWS = {number: title for section in SECTIONS for number, title in section.rows.items()}
