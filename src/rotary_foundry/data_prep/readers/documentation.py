"""Read pages of documentation: HTML files and manual pages, plain or compressed, local or in a store.

An HTML page gives all text outside of navigation. Trafilatura, which extracts the text of WARC files here, looks for
the main text of a web page. In LibreOffice's help pages it found two thirds of the Chinese characters and no headings.

A manual page is troff. The few requests and escapes that carry text are followed, and all others are left out. groff is
not used, because it would break and indent lines. A line's end between two Chinese characters does not become a blank.
"""

import re
from collections.abc import Iterator
from html.parser import HTMLParser

from datatrove.data import Document

from rotary_foundry.data_prep.readers import BadInput, Part, SourceConfig
from rotary_foundry.data_prep.readers.files import CONVERT, Text, read_files
from rotary_foundry.data_prep.readers.listing import fingerprint, parts

__all__ = ["fingerprint", "parts", "read"]

LEFT_OUT = {"aside", "button", "footer", "head", "header", "nav", "noscript", "script", "style", "svg", "template"}
BLOCKS = {
    *("address", "article", "blockquote", "br", "caption", "dd", "details", "div", "dl", "dt", "figcaption", "figure"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "main", "ol", "p", "pre", "section", "summary", "table", "tr"),
    "ul",
}


def read(source: SourceConfig, part: Part, bad: BadInput) -> Iterator[Document]:
    yield from read_files({"html": Html, "man": Man}[source.reader], source, part, bad)


class Html(Text):
    """Reads one document per file: its text, with a line for each block."""

    advice = CONVERT

    def document(self, text: object, where: str, url: object = None) -> Iterator[Document]:
        if text := html_text(text):
            yield from super().document(text, where, url)
        else:
            self.bad.add_without_text(where, "no text outside of head, navigation, scripts and the like")


class Man(Text):
    """Reads one document per manual page; a page that only names another (`.so`) is without text."""

    advice = CONVERT

    def document(self, text: object, where: str, url: object = None) -> Iterator[Document]:
        if text := man_text(text):
            yield from super().document(text, where, url)
        else:
            self.bad.add_without_text(where, "no text besides commands of troff")


def html_text(html: str) -> str:
    """Return the text of an HTML page, a line for each block, without navigation, headers and footers."""
    parser = _Blocks()
    parser.feed(html)
    parser.close()
    return re.sub(r"\s*\n\s*", "\n", "".join(parser.text)).strip()


class _Blocks(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self._left_out = 0  # number of left-out elements around this place
        self._formatted = 0  # number of <pre> elements around this place

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self._left_out += tag in LEFT_OUT
        self._formatted += tag == "pre"
        self._break(tag)
        if tag in ("td", "th") and not self._left_out:
            self.text.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self._left_out = max(0, self._left_out - (tag in LEFT_OUT))
        self._formatted = max(0, self._formatted - (tag == "pre"))
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if not self._left_out:
            self.text.append(data if self._formatted else re.sub(r"\s+", " ", data))

    def _break(self, tag: str) -> None:
        if not self._left_out and tag in BLOCKS:
            self.text.append("\n")


# Requests of man(7) and mdoc(7): those that begin a line, headings, those whose arguments are text, and those whose
# arguments alternate between two fonts and are joined without blanks.
BEGIN = frozenset(
    ("PP", "LP", "P", "TP", "TQ", "IP", "HP", "Pp", "br", "sp", "It", "nf", "fi", "EX", "EE", "RS", "RE", "TS", "TE")
)
HEADINGS = frozenset(("SH", "SS", "Sh", "Ss"))
MDOC = frozenset(  # these may also occur among the arguments of others
    ("Ar", "Fl", "Op", "Nm", "Xr", "Pa", "Ns", "Oo", "Oc", "Dq", "Sq", "Ql", "Em", "Sy", "Cm", "Ev", "Li", "Va", "No")
)
TEXT = MDOC | {"B", "I", "R", "SM", "SB", "IP", "Nd", "It"}
TWO_FONTS = frozenset(("BR", "RB", "BI", "IB", "IR", "RI"))

ESCAPE = re.compile(
    r"""\\(?: ".*                                    # a comment
    | f(?:\(..|\[[^]]*\]|.)                          # a font
    | s(?:[-+]?\d|\[[^]]*\]|[-+]?'[^']*')            # a size
    | [hvwlLDoXxZ]'[^']*'                            # movements and drawings
    | \*(?:\((?P<string>..)|\[(?P<long_string>[^]]*)\]|.)
    | n[-+]?(?:\(..|\[[^]]*\]|.)                     # a number
    | \((?P<name>..) | \[(?P<long_name>[^]]*)\] | (?P<one>.) )""",
    re.VERBOSE,
)
NAMES = {
    **{"lq": "“", "rq": "”", "oq": "‘", "cq": "’", "dq": '"', "aq": "'", "Bq": "„", "ga": "`", "ha": "^", "ti": "~"},
    **{"em": "—", "en": "–", "hy": "-", "mi": "−", "bu": "•", "co": "©", "rg": "®", "tm": "™", "rs": "\\", "sl": "/"},
    **{"+-": "±", "mu": "×", "<=": "≤", ">=": "≥", "!=": "≠", "->": "→", "<-": "←", "de": "°", "at": "@", "sh": "#"},
}
ONE = {"-": "-", "e": "\\", "\\": "\\", " ": " ", "~": " ", "0": " ", "t": " ", "'": "'", "`": "`", ".": "."}
WIDE = r"\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef"  # Chinese characters and their punctuation


def man_text(page: str) -> str:
    """Return the text of a manual page: a line for each heading, paragraph and tag, and for each line of an example."""
    lines: list[str] = [""]
    filled, defining, tag = True, False, False
    for line in page.splitlines():
        if defining or re.match(r"[.']\s*(de|am|ig)\b", line):
            defining = not line.startswith("..")
            continue
        request = ""
        if line.startswith((".", "'")):
            request, _, rest = line[1:].strip().partition(" ")
            filled = {"nf": False, "EX": False, "fi": True, "EE": True}.get(request, filled)
            words = _arguments(request, rest)
        else:
            words = _unescaped(line)
        if request in BEGIN or request in HEADINGS or not lines[-1] or not (filled or request) or not words.strip():
            lines += [words.rstrip()] if words.strip() or request in BEGIN or not request else []
        else:
            lines[-1] = re.sub(rf"(?<=[{WIDE}]) (?=[{WIDE}])", "", f"{lines[-1]} {words.strip()}")
        if request in HEADINGS or (tag and words.strip()):
            lines.append("")
        tag = request in ("TP", "TQ") or (tag and not words.strip())
    return "\n".join(line for line in lines if line.strip())


def _arguments(request: str, rest: str) -> str:
    """Return the text in the arguments of a request."""
    if request not in HEADINGS | TEXT | TWO_FONTS:
        return ""
    arguments = [_unescaped(quoted or plain) for quoted, plain in re.findall(r'"((?:[^"]|"")*)"|(\S+)', rest)]
    if request[1:].islower():
        arguments = [argument for argument in arguments if argument not in MDOC]
    return ("" if request in TWO_FONTS else " ").join(arguments[:1] if request == "IP" else arguments)


def _unescaped(text: str) -> str:
    def of(escape: re.Match) -> str:
        name = escape["name"] or escape["long_name"] or escape["string"] or escape["long_string"]
        return NAMES.get(name, "") if name else ONE.get(escape["one"] or "", "")

    return ESCAPE.sub(of, text)
