"""How one token is drawn from logits, for all rows of a batch at once and reproducibly.

A row's random numbers come from a generator of its own on the CPU and are turned into tokens by whole-number sums, so that
neither the device nor the rows beside it have a say in what is drawn; what they may change is the rounding of the logits.

B rows, V vocabulary, K the likeliest few of it, N blocks of C tokens.
"""

import torch

# Probabilities are drawn from as multiples of 2**-30, finer than an fp32 random number; 31 random bits times their sum
# stay below 2**63.
WEIGHT_BITS, RANDOM_BITS = 30, 31
# Top-p sets are mostly smaller than the first and nearly always than the second: to find so many of the likeliest costs a
# fraction of a sort of the vocabulary.
LIKELIEST = (128, 1024)
BLOCK = 256


def penalise(logits_BV: torch.Tensor, seen_BV: torch.Tensor, penalty_B: torch.Tensor) -> torch.Tensor:
    """Logits with those of tokens already seen divided by the penalty, negative ones multiplied (Keskar et al. 2019)."""
    penalty_B1 = penalty_B[:, None]
    lowered_BV = torch.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    return torch.where(seen_BV, lowered_BV, logits_BV)


def draw(
    logits_BV: torch.Tensor,
    temperature_B: torch.Tensor,
    top_p_B: torch.Tensor,
    random_B: torch.Tensor,
    top_k_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """One token id a row: the likeliest at temperature 0, else from the top-p set (Holtzman et al. 2020) by the inverse
    of its cumulated probabilities, in the order of ids, at a random whole number below 2**31.

    The set is the smallest that holds the likeliest tokens and reaches top_p, and all that are as likely as its last.
    Where top_k is above 0, it is a set of the top_k likeliest, and all that are as likely as the last of these.
    A row whose highest logit is not finite gets -1.
    """
    highest_B, greedy_B = logits_BV.max(-1)
    tokens_B = greedy_B
    if bool((temperature_B > 0).any()):
        temperature_B1 = torch.where(temperature_B > 0, temperature_B, 1)[:, None]
        weights_BV = (torch.softmax((logits_BV - highest_B[:, None]) / temperature_B1, dim=-1) * 2**WEIGHT_BITS).int()
        if top_k_B is not None and bool((top_k_B > 0).any()):
            weights_BV = _keep_top_k(weights_BV, top_k_B)
        least_B = _least_weight(weights_BV, top_p_B)
        drawn_B = _at(torch.where(weights_BV >= least_B[:, None], weights_BV, 0), random_B)
        tokens_B = torch.where(temperature_B > 0, drawn_B, greedy_B)
    return torch.where(highest_B.isfinite(), tokens_B, -1)


def _at(weights_BV: torch.Tensor, random_B: torch.Tensor) -> torch.Tensor:
    """The first token whose cumulated weight is above the random number's share of all: by blocks, then within the one block,
    for to cumulate a whole vocabulary takes as long as all the rest."""
    vocabulary = weights_BV.shape[1]
    blocks_BNC = torch.nn.functional.pad(weights_BV, (0, -vocabulary % BLOCK)).unflatten(1, (-1, BLOCK))
    upto_BN = blocks_BNC.sum(-1, dtype=torch.int32).cumsum(-1)  # a row's weights are 2**30 together
    target_B1 = (random_B * upto_BN[:, -1])[:, None] >> RANDOM_BITS
    # A row that is not finite leads past the end, and what is not in the vocabulary must never be looked up.
    block_B1 = torch.searchsorted(upto_BN, target_B1, right=True).clamp(max=upto_BN.shape[1] - 1)
    inside_BC = blocks_BNC[torch.arange(len(block_B1), device=block_B1.device), block_B1[:, 0]].cumsum(-1)
    before_B1 = upto_BN.gather(1, block_B1) - inside_BC[:, -1:]
    place_B1 = torch.searchsorted(inside_BC, target_B1 - before_B1, right=True)
    return (block_B1 * BLOCK + place_B1)[:, 0].clamp(max=vocabulary - 1)


def _keep_top_k(weights_BV: torch.Tensor, top_k_B: torch.Tensor) -> torch.Tensor:
    most = min(int(top_k_B.max()), weights_BV.shape[1])
    place_B1 = (top_k_B.clamp(1, most) - 1)[:, None]
    least_B1 = weights_BV.topk(most).values.gather(1, place_B1)
    return torch.where((weights_BV >= least_B1) | (top_k_B <= 0)[:, None], weights_BV, 0)


def _least_weight(weights_BV: torch.Tensor, top_p_B: torch.Tensor) -> torch.Tensor:
    """The least weight in each row's top-p set: a token belongs while those before it have not reached the set's share.

    The likeliest few are looked at first, then more for those rows that they do not suffice for.
    """
    wanted_B = top_p_B * weights_BV.sum(-1)
    least_B = torch.zeros_like(weights_BV[:, 0])  # nothing is left out where top_p is 1
    left = (top_p_B < 1).nonzero()[:, 0]
    for count in (*LIKELIEST, weights_BV.shape[1]):
        if not len(left):
            break
        sorted_BK = weights_BV[left].topk(min(count, weights_BV.shape[1])).values
        upto_BK = sorted_BK.cumsum(-1)
        inside_B = (upto_BK - sorted_BK < wanted_B[left, None]).sum(-1)
        least_B[left] = sorted_BK.gather(1, (inside_B - 1).clamp(min=0)[:, None])[:, 0]
        left = left[upto_BK[:, -1] < wanted_B[left]]
    return least_B
