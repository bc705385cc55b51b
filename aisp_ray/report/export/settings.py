"""The keys of an export."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from aisp_ray.errors import require_one_of
from aisp_ray.files import inside, split_query
from aisp_ray.report.rows import output_list

FORMATS = ("preference", "sft", "candidates")
REJECTED = ("worst", "base")


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Keys of an export."""

    out: tuple[str, ...] = ()  # folders or URIs that jobs/eval.py wrote
    format: str = "preference"  # preference | sft | candidates
    to: str | None = None  # folder or URI of the data set; null: <first out>/export/<format>
    methods: tuple[str, ...] = ()  # methods whose responses are used; empty takes all, pooled per prompt
    rejected: str = "worst"  # preference: worst (lowest reward of the pool) | base (first draw of the base method)
    base: str = "best_of_n"  # whose first draw is the plain policy's answer, for rejected=base
    pairs: int = 1  # preference: pairs per prompt, best with worst, second best with second worst ...
    min_margin: float = 0.0  # preference: least difference of rewards within a pair
    max_margin: float | None = None  # preference: largest difference; null for no limit
    length_ratio: float | None = (
        None  # preference: match lengths; the longer response has at most so many times the words
    )
    min_reward: float | None = None  # least reward of a chosen response or demonstration; null for no limit
    min_words: int | None = None  # shorter responses are left out; null for no limit
    max_words: int | None = None  # longer responses are left out; null for no limit
    complete: bool = True  # leave out responses that were cut by the length limit
    prompt_similarity: float | None = None  # drop prompts at least so similar to an earlier one, Jaccard in (0, 1]
    response_similarity: float | None = None  # the same for responses, and for the two responses of a pair
    shares: dict[str, float] = field(default_factory=dict)  # share of rows per dataset, e.g. {shp: 0.7, hh_rlhf: 0.3}
    top_k_overall: int | None = None  # keep the best rows of all prompts together, by margin or reward; null keeps all
    control: bool = False  # also as many rows at random, regardless of filters: the configuration "control"
    test_share: float = 0.0  # share of prompts, by a hash of their text, that goes to a test split
    validation_share: float = 0.0  # share of prompts that goes to a validation split
    seed: int = 0  # names the draws of shares and control
    messages: bool = True  # prompts and responses as chat messages; false: as texts
    shard_rows: int = 50_000  # rows of one Parquet file
    license: str | None = None  # of the data set, as the hub names licences, for its card; null leaves it out
    push_to: str | None = None  # also push to this data set on the hub, user/name; null does not
    private: bool = True  # whether a data set that push_to creates is private

    def __post_init__(self) -> None:
        if not self.out:
            raise ValueError("out is empty; give out=<the folder that jobs/eval.py wrote>")
        require_one_of("format", self.format, FORMATS)
        if self.rejected not in REJECTED:
            raise ValueError(f"rejected is {self.rejected!r}; it is worst or base")
        if self.pairs < 1 or (self.pairs > 1 and self.rejected == "base"):
            raise ValueError(f"pairs is {self.pairs}; give 1 or more, and 1 with rejected=base: there is one such draw")
        self._check_preference_keys()
        self._check_filters()
        self._check_shares()
        if self.shard_rows < 1:
            raise ValueError(f"shard_rows is {self.shard_rows}; give at least 1 row per file")
        if self.push_to is not None and "://" in self.folder:
            raise ValueError(f"push_to={self.push_to} needs a local `to`, and it is {self.folder}")

    def _check_preference_keys(self) -> None:
        if self.min_margin < 0 or (self.max_margin is not None and self.max_margin < self.min_margin):
            raise ValueError(f"min_margin is {self.min_margin} and max_margin {self.max_margin}; 0 <= min <= max")
        if self.length_ratio is not None and not 1 <= self.length_ratio < math.inf:
            raise ValueError(f"length_ratio is {self.length_ratio}; 1 asks for equal lengths, 1.2 for up to 20 % more")
        if self.format == "preference":
            return
        usual = {"min_margin": 0.0, "max_margin": None, "length_ratio": None, "pairs": 1, "rejected": "worst"}
        for key, value in usual.items():
            if getattr(self, key) != value:
                raise ValueError(f"{key} is about pairs and has no effect with format={self.format}; leave it out")

    def _check_filters(self) -> None:
        low, high = self.min_words, self.max_words
        if (low or 1) < 1 or (high is not None and high < (low or 1)):
            raise ValueError(f"min_words is {low} and max_words {high}; give at least 1, and min at most max")
        for key in ("prompt_similarity", "response_similarity"):
            value = getattr(self, key)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{key} is {value}; it is a Jaccard similarity in (0, 1], e.g. 0.8")
        if self.top_k_overall is not None and self.top_k_overall < 1:
            raise ValueError(f"top_k_overall is {self.top_k_overall}; give at least 1 row, or null for all")

    def _check_shares(self) -> None:
        for name, share in self.shares.items():
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
                raise ValueError(f"shares.{name} is {share!r}; the share of a dataset lies in (0, 1]")
        if self.shares and abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"shares sum to {sum(self.shares.values()):g}; the shares of all datasets sum to 1")
        for key in ("test_share", "validation_share"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; it lies in [0, 1)")
        if self.test_share + self.validation_share >= 1:
            raise ValueError(
                f"test_share is {self.test_share} and validation_share {self.validation_share}; together they leave "
                "nothing to train on"
            )

    @property
    def folder(self) -> str:
        """Where the data set goes."""
        return "".join(split_query(self.to or inside(output_list(self.out)[0], f"export/{self.format}")))
