"""ATTACKS: the one place where a name becomes an attack."""

from simulations.attacks import canaries, inversion, membership
from simulations.attacks.attack import Attack

ATTACKS: dict[str, Attack] = {
    attack.name: attack for attack in (membership.MEMBERSHIP, inversion.INVERSION, canaries.CANARIES)
}
