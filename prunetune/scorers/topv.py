"""TopV's optimal transport between the states around one decoder layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from prunetune.numerics import exactly
from prunetune.registry import Tunable
from prunetune.scorers.base import Need, ScoreContext, Scorer

# Elements of the largest intermediate: 16 MiB of float32, about six of which live at once.
_LIMIT = 1 << 22
# Bounds a scaling that the literal solver exponentiates again; exp(80) / epsilon is finite.
_LOG_MAX = 80.0


class TopV(Scorer):
    """TopV, arXiv 2503.18278 (CVPR 2025), section 3: visual tokens as an optimal transport plan.

    Cost of moving the state ``s_i`` entering a decoder layer to ``t_j``, its MLP input, with
    unit-length states (raw ones underflow) and coordinates in grid cells of the token's own tile:

        C_ij = feature * |s_i - t_j|^2 + spatial * (1 - exp(-d_ij^2 / (2 sigma^2))) + central * c_i

    where ``d_ij`` is the distance of the two tokens and ``c_i`` that of i from the tile's centre.
    With ``K = exp(-C / epsilon)``, ``q_j ~ |t_j|`` and ``p_i ~ |s_i|``, importance is the row sum
    of the plan. The published Sinkhorn iteration cannot be reconstructed: ended on the row scaling
    its row sums are ``p``, whatever the cost. Hence the ``solver``:

    - ``semi_relaxed`` (default): only columns are bound, ``I_i = sum_j q_j K_ij / sum_k K_kj``.
    - ``end_on_v``: Sinkhorn ended on the column scaling.
    - ``literal``: ``v = q / (K' exp(u / epsilon))``, ``u = p / (K exp(v / epsilon))`` as printed.

    Solved tile by tile. Unit: importance relative to the tile's mean. Standardised on a log scale.

    Attributes:
        feature: Cost-term weight of the states' distance (published: 1).
        spatial: Cost-term weight of the distance in the tile (published: 1).
        central: Cost-term weight of the distance from the centre, per cell (published: 0.01 for
            LLaVA, 0.1 for InternVL2).
        sigma: Reach of the spatial term in cells.
        epsilon: Entropic regularisation; smaller is nearer to a hard assignment.
        solver: See above.
        iterations: Of the solvers that iterate.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"layer_states"})
    standardise: ClassVar[Literal["linear", "log"]] = "log"
    summary: ClassVar[str] = "optimal transport between a layer's states (TopV)"

    name: Literal["topv"] = "topv"
    feature: Annotated[
        float, Field(ge=-10.0, le=10.0), Tunable(-1.0, 1.0, shown="distance of the states")
    ] = 1.0
    spatial: Annotated[
        float, Field(ge=-10.0, le=10.0), Tunable(-1.0, 1.0, shown="distance in the tile")
    ] = 1.0
    central: Annotated[
        float, Field(ge=-10.0, le=10.0), Tunable(-0.2, 0.2, shown="distance from the centre")
    ] = 0.01
    sigma: float = Field(default=10.0, ge=0.1, le=1000.0)
    epsilon: Annotated[
        float, Field(ge=0.001, le=100.0), Tunable(0.02, 1.0, log=True, shown="regularisation")
    ] = 0.1
    solver: Literal["semi_relaxed", "end_on_v", "literal"] = "semi_relaxed"
    iterations: int = Field(default=3, ge=1, le=1000)

    @exactly()
    def score(self, ctx: ScoreContext) -> Tensor:
        """Return the importance, ``[visual]`` float32, mean 1 in every tile."""
        source, target = ctx.given("source_states"), ctx.given("target_states")
        tile = ctx.geometry.tile
        out = torch.zeros(len(ctx), dtype=torch.float32, device=ctx.device)
        for index, valid in self._groups(tile, source.shape[-1]):
            mass = self._solve(_problem(ctx, source, target, index, valid))
            if valid is None:
                out[index.flatten()] = mass.flatten()
            else:
                out[index[valid]] = mass[valid]
        return out

    def _groups(self, tile: Tensor, width: int) -> list[tuple[Tensor, Tensor | None]]:
        """Split token positions into ``(index [T, m], valid [T, m])``; one row is one tile."""
        sizes = [size for size in torch.bincount(tile).tolist() if size]
        if len(sizes) == 1:
            return [(torch.arange(sizes[0], device=tile.device)[None], None)]
        order = torch.argsort(tile, stable=True)
        if len(set(sizes)) == 1 and len(order) * max(sizes[0], width) <= _LIMIT:
            return [(order.view(len(sizes), -1), None)]
        widest = max(sizes)
        iterates = self.solver != "semi_relaxed"
        if iterates or len(sizes) * widest * max(widest, width) > _LIMIT:
            return [(part[None], None) for part in torch.split(order, sizes)]
        size = torch.tensor(sizes, device=tile.device)[:, None]
        offset = torch.arange(widest, device=tile.device)
        start = size.cumsum(0) - size
        return [(order[(start + offset).clamp_max(len(order) - 1)], offset < size)]

    def _solve(self, problem: "_Problem") -> Tensor:
        """Return the importance of one group of tiles, ``[T, m]``, mean 1 over a tile's tokens."""
        if self.solver == "semi_relaxed":
            mass = torch.zeros_like(problem.row)[:, None]
            q = problem.marginal(problem.target_norm) * problem.count
            for cols in problem.columns():
                plan = torch.softmax(self._log_kernel(problem, cols), dim=2)
                mass.baddbmm_(q[:, None, cols], plan)
            return mass[:, 0]
        log_mass = self._end_on_v(problem) if self.solver == "end_on_v" else self._literal(problem)
        return torch.softmax(log_mass, dim=1) * log_mass.shape[1]

    def _end_on_v(self, problem: "_Problem") -> Tensor:
        log_p = problem.marginal(problem.source_norm).log()
        log_q = problem.marginal(problem.target_norm).log()
        log_v = torch.zeros_like(log_q)
        for _ in range(self.iterations):
            log_u = log_p - self._over_columns(problem, log_v)
            log_v = log_q - self._over_rows(problem, log_u)
        return log_u + self._over_columns(problem, log_v)

    def _literal(self, problem: "_Problem") -> Tensor:
        log_p = problem.marginal(problem.source_norm).log()
        log_q = problem.marginal(problem.target_norm).log()
        log_u = torch.zeros_like(log_p)
        for _ in range(self.iterations):
            scaled = log_u.exp() / self.epsilon
            log_v = (log_q - self._over_rows(problem, scaled)).clamp_max(_LOG_MAX)
            scaled = log_v.exp() / self.epsilon
            log_u = (log_p - self._over_columns(problem, scaled)).clamp_max(_LOG_MAX)
        return log_u + self._over_columns(problem, log_v)

    def _over_columns(self, problem: "_Problem", potential: Tensor) -> Tensor:
        """Return ``log sum_j K_ij exp(potential_j)``, ``[T, m]`` over i."""
        total = torch.full_like(potential, -torch.inf)
        for cols in problem.columns():
            block = self._log_kernel(problem, cols).add_(potential[:, cols, None])
            total = torch.logaddexp(total, block.logsumexp(1))
        return total

    def _over_rows(self, problem: "_Problem", potential: Tensor) -> Tensor:
        """Return ``log sum_i K_ij exp(potential_i)``, ``[T, m]`` over j."""
        blocks = (self._log_kernel(problem, cols) for cols in problem.columns())
        return torch.cat([block.add_(potential[:, None]).logsumexp(2) for block in blocks], 1)

    def _log_kernel(self, problem: "_Problem", cols: slice) -> Tensor:
        """Return ``log K`` transposed, ``[T, c, m]``: target columns ``cols`` by all sources."""
        row, col, eps = problem.row, problem.col, self.epsilon
        prior = problem.centre * (-self.central / eps) - (2 * self.feature + self.spatial) / eps
        if problem.valid is not None:
            prior = prior.masked_fill(~problem.valid, -torch.inf)
        if self.spatial:
            out = (row[:, None] - row[:, cols, None]).square_()
            across = col[:, None] - col[:, cols, None]
            out.addcmul_(across, across).mul_(-0.5 / self.sigma**2).exp_()
            out.mul_(self.spatial / eps).add_(prior[:, None])
        else:
            out = prior[:, None].repeat(1, len(range(*cols.indices(row.shape[1]))), 1)
        if self.feature:
            gain = (2 * self.feature / eps) / problem.target_norm[:, cols, None]
            target = problem.target(cols) * gain
            for rows in problem.rows():
                # Scaled before the product: states are narrower than the kernel is wide.
                source = problem.source(rows) / problem.source_norm[:, rows, None]
                out[..., rows].baddbmm_(target, source.transpose(1, 2))
        return out


@dataclass(frozen=True)
class _Problem:
    """One group of tiles: everything the kernel is made of, ``[T, m]`` unless stated.

    ``source`` and ``target`` give the float32 states ``[T, r, d]`` of a slice of positions.
    ``count`` is each tile's number of tokens, where ``valid`` marks the others as padding.
    """

    source: Callable[[slice], Tensor]
    target: Callable[[slice], Tensor]
    source_norm: Tensor
    target_norm: Tensor
    row: Tensor
    col: Tensor
    centre: Tensor
    valid: Tensor | None
    count: Tensor | int
    width: int

    def marginal(self, norm: Tensor) -> Tensor:
        """Return ``norm`` as shares of the tile: TopV's ``Norm``; 0 for padding."""
        norm = norm if self.valid is None else norm * self.valid
        return norm / norm.sum(1, keepdim=True)

    def rows(self) -> list[slice]:
        """Slices of positions whose states fit the limit."""
        return _slices(self.row, self.width)

    def columns(self) -> list[slice]:
        """Slices of positions whose kernel columns and states fit the limit."""
        return _slices(self.row, max(self.row.shape[1], self.width))


def _problem(
    ctx: ScoreContext, source: Tensor, target: Tensor, index: Tensor, valid: Tensor | None
) -> _Problem:
    place = ctx.geometry
    width = source.shape[-1]
    take_source, take_target = _taker(source, index), _taker(target, index)
    slices = _slices(index, width)
    grid = torch.stack([place.row, place.col, place.tile_rows, place.tile_cols]).float()
    grid = grid[:, index]
    middle = (grid[2:] - 1) / 2
    return _Problem(
        source=take_source,
        target=take_target,
        source_norm=_norms(take_source, slices),
        target_norm=_norms(take_target, slices),
        row=grid[0],
        col=grid[1],
        centre=torch.linalg.vector_norm(grid[:2] - middle, dim=0),
        valid=valid,
        count=index.shape[1] if valid is None else valid.sum(1, keepdim=True),
        width=width,
    )


def _taker(states: Tensor, index: Tensor) -> Callable[[slice], Tensor]:
    if index.numel() * states.shape[-1] <= _LIMIT:
        whole = states[index].float()
        return lambda part: whole[:, part]
    return lambda part: states[index[:, part]].float()


def _norms(take: Callable[[slice], Tensor], slices: list[slice]) -> Tensor:
    norms = torch.cat([torch.linalg.vector_norm(take(part), dim=-1) for part in slices], 1)
    # Keeps a state of zeros, of padding for one, from dividing by zero.
    return norms.clamp_min(1e-12)


def _slices(like: Tensor, per_position: int) -> list[slice]:
    """Split the positions of ``like`` (``[T, m]``) so that a slice holds at most the limit."""
    step = max(1, _LIMIT // (like.shape[0] * per_position))
    return [slice(start, start + step) for start in range(0, like.shape[1], step)]
