"""The phantom's head: a sphere with current dipoles in it, sensors around it, and MNE's forward solution between them.

Places are given in metres from the centre of the sphere, axes as in MNE's head frame (x right, y front, z up).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mne
import numpy as np

SCALP = 0.095  # m, radius of the head
CORTEX = 0.075  # m, no dipole lies farther out
HELMET = 0.12  # m, radius of the helmet's inner coils
CENTRE = np.array([0.0, 0.0, 0.0401487])  # m in the head frame: the centre of MNE's BioSemi caps, taken for the helmet as well
N_BACKGROUND = 300  # dipoles of the background

# Name, place (m) and direction of every dipole that answers speech. Directions are made tangential: a sphere shows MEG nothing else.
RESPONDING = (
    ("auditory left", (-0.050, 0.000, 0.020), (0.0, 0.4, 0.9)),
    ("auditory right", (0.050, 0.000, 0.020), (0.0, 0.4, 0.9)),
    ("belt left", (-0.052, 0.006, 0.014), (0.0, 0.9, -0.4)),
    ("belt right", (0.052, 0.006, 0.014), (0.0, 0.9, -0.4)),
    ("superior temporal left", (-0.053, -0.018, 0.018), (0.0, 0.6, 0.8)),
    ("superior temporal right", (0.053, -0.018, 0.018), (0.0, 0.6, 0.8)),
    ("middle temporal left", (-0.056, -0.022, 0.000), (0.0, 0.2, 1.0)),
    ("inferior frontal left", (-0.045, 0.040, 0.018), (0.5, 0.2, 0.8)),
)
# What is busy with something else: rhythms at the back and over the hands, and temporal cortex that follows a talker who is not offered.
DISTRACTING = (
    ("occipital left", (-0.015, -0.068, 0.015), (1.0, 0.0, 0.3)),
    ("occipital right", (0.015, -0.068, 0.015), (1.0, 0.0, -0.3)),
    ("sensorimotor left", (-0.038, 0.005, 0.055), (0.2, 1.0, 0.0)),
    ("sensorimotor right", (0.038, 0.005, 0.055), (-0.2, 1.0, 0.0)),
    ("other talker left", (-0.046, -0.008, 0.026), (0.0, 0.5, 0.9)),
    ("other talker right", (0.046, -0.008, 0.026), (0.0, 0.5, 0.9)),
)
EYES = ((0.030, 0.066, -0.018), (-0.030, 0.066, -0.018))


@dataclass(frozen=True, eq=False)
class Dipoles:
    """Current dipoles: places (n, 3) in m from the centre of the sphere, directions (n, 3) of length 1."""

    places: np.ndarray
    directions: np.ndarray


@dataclass(frozen=True, eq=False)
class Pose:
    """How a head sits among its sensors: a rotation about the centre of the sphere (3, 3), then a shift (3,) in m."""

    rotation: np.ndarray
    shift: np.ndarray


def make_info(kind: str, n_channels: int, sfreq: float) -> mne.Info:
    """Make the sensors: a cap (EEG) or a helmet of axial gradiometers (MEG), with their places and, for MEG, their coils.

    A cap of 32, 64, 128 or 256 electrodes is MNE's BioSemi montage of that size; any other number is spread evenly over the next larger.
    A helmet has KIT's coils (MNE's coil definition 6001: 50 mm from the inner to the outer coil, pointing outwards) in equal solid angles
    down to a quarter below the equator. MNE calls such channels ``mag``, since they are in tesla.
    """
    return _cap(n_channels, sfreq) if kind == "eeg" else _helmet(n_channels, sfreq)


def _cap(n_channels: int, sfreq: float) -> mne.Info:
    size = next(size for size in (32, 64, 128, 256) if size >= n_channels)
    montage = mne.channels.make_standard_montage(f"biosemi{size}")
    available = montage.get_positions()["ch_pos"]
    everywhere = np.array(list(available.values()))
    chosen = [0]
    while len(chosen) < n_channels:  # the electrode farthest from those already chosen comes next
        distance = np.linalg.norm(everywhere[:, None] - everywhere[None, chosen], axis=2).min(axis=1)
        chosen.append(int(np.argmax(distance)))
    info = mne.create_info([list(available)[i] for i in sorted(chosen)], sfreq, "eeg", verbose="error")
    info.set_montage(montage)
    return info


def _helmet(n_channels: int, sfreq: float) -> mne.Info:
    index = np.arange(n_channels) + 0.5
    height = 1 - 1.25 * index / n_channels
    angle = index * math.pi * (3 - math.sqrt(5))
    outwards = np.stack([np.sqrt(1 - height**2) * np.cos(angle), np.sqrt(1 - height**2) * np.sin(angle), height], axis=1)
    info = mne.create_info([f"MEG {k:03d}" for k in range(1, n_channels + 1)], sfreq, "mag", verbose="error")
    for channel, normal in zip(info["chs"], outwards, strict=True):
        first = np.cross(normal, [0.0, 0.0, 1.0] if abs(normal[2]) < 0.9 else [1.0, 0.0, 0.0])
        first /= np.linalg.norm(first)
        channel["loc"][:] = np.concatenate([HELMET * normal, first, np.cross(normal, first), normal])
        channel["coil_type"] = mne.io.constants.FIFF.FIFFV_COIL_KIT_GRAD
        channel["coord_frame"] = mne.io.constants.FIFF.FIFFV_COORD_DEVICE
    return place_head(info, Pose(np.eye(3), np.zeros(3)))


def place_head(info: mne.Info, pose: Pose) -> mne.Info:
    """Say in the info of a helmet where the head is; the info of a cap stays, for nobody measures how a cap has slipped."""
    info = info.copy()
    if "mag" in info.get_channel_types():
        # A point of the device at p (from the helmet's centre) is at rotation' (p - shift) in the head, whose origin lies below.
        transform = np.eye(4)
        transform[:3, :3] = pose.rotation.T
        transform[:3, 3] = CENTRE - pose.rotation.T @ pose.shift
        with info._unlock():
            info["dev_head_t"] = mne.transforms.Transform("meg", "head", transform)
    return info


def draw_pose(rng: np.random.Generator) -> Pose:
    """Draw how one listener's head sits: turned by some 3 degrees about each axis, shifted by some 4 mm."""
    turn, shift = np.radians(3.0) * rng.standard_normal(3), 0.004 * rng.standard_normal(3)
    cross = np.array([[0, -turn[2], turn[1]], [turn[2], 0, -turn[0]], [-turn[1], turn[0], 0]])
    # Cayley's formula: a proper rotation by these (small) angles.
    rotation = np.linalg.solve(np.eye(3) - cross / 2, np.eye(3) + cross / 2)
    return Pose(rotation, shift)


def draw_named(rng: np.random.Generator, named: tuple, *, spread: float = 0.004) -> Dipoles:
    """Draw one listener's dipoles around those of a table: places differ by some mm, directions by some degrees."""
    places = np.array([place for _, place, _ in named]) + spread * rng.standard_normal((len(named), 3))
    directions = np.array([direction for _, _, direction in named]) + 0.2 * rng.standard_normal((len(named), 3))
    radius = np.linalg.norm(places, axis=1, keepdims=True)
    places *= np.minimum(1, CORTEX / radius)
    outwards = places / np.linalg.norm(places, axis=1, keepdims=True)
    directions -= (directions * outwards).sum(axis=1, keepdims=True) * outwards
    return Dipoles(places, directions / np.linalg.norm(directions, axis=1, keepdims=True))


def draw_background(rng: np.random.Generator) -> Dipoles:
    """Draw ``N_BACKGROUND`` dipoles, denser towards the cortex, pointing anywhere."""
    outwards = rng.standard_normal((N_BACKGROUND, 3))
    outwards /= np.linalg.norm(outwards, axis=1, keepdims=True)
    directions = rng.standard_normal((N_BACKGROUND, 3))
    return Dipoles(
        CORTEX * rng.random((N_BACKGROUND, 1)) ** (1 / 5) * outwards, directions / np.linalg.norm(directions, axis=1, keepdims=True)
    )


def eyes() -> Dipoles:
    """Give the two eyes, whose front is positive: a blink turns both dipoles up."""
    return Dipoles(np.array(EYES), np.array([[0.0, 0.6, 0.8]] * 2))


def fields(info: mne.Info, dipoles: Dipoles, pose: Pose) -> np.ndarray:
    """Give what each sensor sees of each dipole of 1 nAm, in V or T, shape (n_channels, n_dipoles), through MNE's spherical head model."""
    is_eeg = "eeg" in info.get_channel_types()
    info = place_head(info, pose)
    if is_eeg:
        places = np.array([channel["loc"][:3] for channel in info["chs"]])
        # The cap slips over the head: the electrodes turn the other way, and stay on the scalp.
        moved = (places - CENTRE - pose.shift) @ pose.rotation
        moved *= SCALP / np.linalg.norm(moved, axis=1, keepdims=True)
        for channel, place in zip(info["chs"], moved + CENTRE, strict=True):
            channel["loc"][:3] = place
        sphere = mne.make_sphere_model(r0=CENTRE, head_radius=SCALP, verbose="error")
    else:
        sphere = mne.make_sphere_model(r0=CENTRE, head_radius=None, verbose="error")
    sources = mne.setup_volume_source_space(
        pos={"rr": dipoles.places + CENTRE, "nn": dipoles.directions}, sphere_units="m", verbose="error"
    )
    forward = mne.make_forward_solution(info, trans=None, src=sources, bem=sphere, meg=not is_eeg, eeg=is_eeg, mindist=0.0, verbose="error")
    gain = forward["sol"]["data"].reshape(len(info["chs"]), -1, 3)
    if gain.shape[1] != len(dipoles.places):
        raise RuntimeError(f"The head model kept {gain.shape[1]} of {len(dipoles.places)} dipoles: some lie outside the brain.")
    return 1e-9 * np.einsum("cds,ds->cd", gain, dipoles.directions)


def make_impulse(sfreq: float, seconds: float) -> mne.io.BaseRaw:
    """Make a recording of one channel that is 0 but for a 1 in the middle, to see what preprocessing makes of it.

    Raises
    ------
    ValueError
        If no sample falls on the middle.
    """
    middle = seconds / 2 * sfreq
    if middle != int(middle):
        raise ValueError(f"No sample at {sfreq} Hz falls on {seconds / 2} s; take a sampling rate in whole Hz.")
    data = np.zeros((1, round(seconds * sfreq)))
    data[0, int(middle)] = 1.0
    return mne.io.RawArray(data, mne.create_info(["EEG1"], sfreq, "eeg", verbose="error"), verbose="error")
