import re
from pathlib import Path

from setuptools import setup

FILES = "https://github.com/sploot/sploot-cluster/blob/main/"
PICTURES = "https://raw.githubusercontent.com/sploot/sploot-cluster/main/"

# The README is also the page of the distribution, from which links to files of the repository would lead nowhere.
text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
text = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)", rf"\1{PICTURES}", text)
text = re.sub(r"((?<!!)\[[^\]]*\]\()(?!https?:|#)", rf"\1{FILES}", text)

setup(long_description=text, long_description_content_type="text/markdown")
