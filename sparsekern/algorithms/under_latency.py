"""What HALP and IEE's structured form share: channels in coupled groups, a latency budget over them, and their importance."""
from torch import Tensor, nn

from sparsekern.sparsity.channel_masks import Channels, TaylorSum, plan_channels
from sparsekern.sparsity.layers import Layer
from sparsekern.sparsity.masks import MaskSet
from sparsekern.sparsity.slim import slim
from sparsekern.sparsity.sparsifier import Sparsifier


class UnderLatency:
    """Hooks of a Sparsifier or a form of one, whose config has `table`, `latency`, `bundle`, `min_keep`, `keep_first` and `other_machine`.

    `find_layers` sets what the others use: `channels` (ChannelMasks), `budget` (ChannelBudget), `target` (milliseconds), `taylor` (TaylorSum).
    """

    @property
    def engine(self) -> Sparsifier:
        """Whose masks these are; its `net` names the one net."""
        return self

    def find_layers(self) -> list[Layer]:
        c, model = self.engine.config, self.engine.model
        for name, default in (("skip_first", False), ("skip_last", False), ("skip_depthwise", False), ("only", None), ("exclude", None)):
            if getattr(c, name) != default:
                raise ValueError(f"{name}: channels are chosen in coupled groups, not by the names of weights; use keep_first")
        self.channels, self.budget, self.target = plan_channels(
            model, table=c.table, latency=c.latency, bundle=c.bundle, min_keep=c.min_keep, keep_first=c.keep_first, other_machine=c.other_machine)
        self.taylor = TaylorSum(model, self.channels.groups)
        return self.channels.layers()

    def make_masks(self) -> MaskSet:
        return self.channels.mask_set()

    def make_patterns(self) -> dict[str, Channels]:
        return {f"{self.target:.4g}ms": Channels(self.target)}

    @property
    def keep(self) -> dict[str, Tensor]:
        """{group: bool [channels]} of the net, on the host."""
        return self.channels.keep(self.engine.masks[self.engine.net])

    @property
    def latency_ms(self) -> float:
        """Of the net, as the table tells."""
        return self.budget.total_ms(self.engine.masks.kept(self.engine.net))

    def slim(self) -> nn.Module:
        """The net as a plain, physically smaller model; the sparsifier is removed."""
        keep = self.keep
        return slim(self.engine.remove(self.engine.net), self.channels.all, keep)

    def extra_state(self) -> dict:
        return {"full_ms": self.budget.table.full_ms}

    def load_extra_state(self, values: dict) -> None:
        if values["full_ms"] != self.budget.table.full_ms:
            raise ValueError(f"sparsifier state: table: the run was started with a table of {values['full_ms']:.3f} ms for the whole net, this "
                             f"one says {self.budget.table.full_ms:.3f} ms")

    def extra_tensors(self) -> dict[str, Tensor]:
        return self.taylor.tensors()

    def load_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.taylor.load(tensors)
