"""Questions of Chinese patients to an online doctor, by department."""

from pathlib import Path

from simulations.datasets.dataset import Dataset, File, Table
from simulations.datasets.tables import read_csv, text_table

FILE = "im_5000_6000.csv.gz"
DEPARTMENTS = ("内分泌科", "呼吸科", "心血管科", "消化科", "神经科", "肝病科")
"""Those with 100 questions or more."""


def read(folder: Path) -> Table:
    """Join title and question; drop repeated texts, then the five small departments."""
    cells = read_csv(folder / FILE, ("department", "title", "ask"))
    texts = [f"{title}\n{ask}" for title, ask in zip(cells["title"], cells["ask"], strict=True)]
    return text_table(texts, cells["department"], DEPARTMENTS)


QUESTIONS_ZH = Dataset(
    name="questions-zh",
    title="Chinese patients' questions, by department",
    task="notes",
    origin="github.com/Toyhom/Chinese-medical-dialogue-data at 26724a4, sample file of internal medicine 5000-6000",
    licence="MIT",
    citation="Toyhom 2019, Chinese medical dialogue data",
    rows=7059,
    read=read,
    folder="zh-internal-medicine-qa",
    files=(File(FILE, 1_585_680, ("sha256:0fd76df668c13fdd601e529d1d17d62dea825e19041150617d3fd5a79c0bed54",)),),
    note="It is the named file turned from GB18030 into UTF-8 and gzipped, and stands at no public address in this form.",
    task_settings={"classes": ",".join(DEPARTMENTS)},
)
