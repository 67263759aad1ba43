"""Licences that the operator has to accept before anything is downloaded or loaded."""

from collections.abc import Callable
from dataclasses import dataclass

from generation.settings import GenerationSettings
from protocol.errors import SetupError


@dataclass(frozen=True)
class LicenceToAccept:
    """A licence that asks more of its users than to keep its text.

    Attributes:
        name: What it calls itself.
        setting: The switch that accepts it, by its dotted name.
        why: What needs it.
        read: Where its text is, and what it is about; one a line.
        conditions: Its content in short, in the order of its text.
        instead: What needs no acceptance.
        applies: Whether these settings load something that is under it.
        accepted: Whether these settings say that the operator accepts it.
    """

    name: str
    setting: str
    why: str
    read: tuple[str, ...]
    conditions: tuple[str, ...]
    instead: str
    applies: Callable[[GenerationSettings], bool]
    accepted: Callable[[GenerationSettings], bool]

    @property
    def flag(self) -> str:
        """The switch on the command line."""
        return f"--{self.setting}"

    def not_accepted(self) -> SetupError:
        """What ends a program that would load something under it."""
        return SetupError(
            f"{self.why}, whose licence has not been accepted ({self.flag} is false)",
            fix="\n".join(
                (
                    *self.read,
                    "This is its content in short; the text itself is what counts:",
                    *(f"- {condition}" for condition in self.conditions),
                    "If you accept it, say so in the settings file, or run the same again with "
                    f"{self.flag} true",
                    f"If not, use {self.instead}",
                )
            ),
        )


_OF_DINOV3 = (
    "Use, copies, changes and passing on are free of charge worldwide, and commercial use is not "
    "excluded; the right cannot be transferred (1.a).",
    "Whoever passes on DINOv3, or a work derived from it, does so under this licence and with a "
    'copy of it (1.b.i). The text on ai.meta.com is reported to ask for a prominent "Built with '
    'DINOv3" as well.',
    "A publication of research that used DINOv3 acknowledges it (1.b.ii).",
    "Its use complies with the law, with trade controls, and with privacy and data protection "
    "laws (1.b.iii).",
    "Its use neither involves nor encourages reverse engineering, decompiling or discovering its "
    "underlying components (1.b.iv).",
    "You are not a target of trade controls (sanctions, export and import controls). You neither "
    "use it nor permit others to use it for activities subject to ITAR or for end uses that trade "
    "controls prohibit, among them military or warfare purposes, nuclear industries or "
    "applications, espionage, and the development or use of guns or illegal weapons (1.b.v).",
    "It comes as is, without support, warranty or liability (2 to 4).",
    "Your rights end when you sue anybody because DINOv3 or its outputs infringe your rights. You "
    "indemnify Meta against claims of third parties that arise from your use (5.b).",
    "Meta may terminate it if you break it; you then delete DINOv3 (6). The law and the courts of "
    "California apply (7). Meta may change it, and continued use accepts the change (8).",
)
"""The text of August 19, 2025."""

_OF_OPENRAIL = (
    "Copies, changes, passing on and sublicensing are free of charge worldwide; commercial use "
    "is not excluded (2). A patent licence ends when you sue anybody because the model "
    "infringes your patents (3).",
    "Anyone who passes the model or a derivative on, or lets others use it as a hosted service, "
    "makes the restrictions of use part of an enforceable agreement, lets its users know that they "
    "hold, hands over a copy of the licence, marks changed files and keeps the notices (4).",
    "Use is lawful and none of the restricted ones below, and you require the same of all of "
    "your users (5).",
    "The licensor claims no rights in what you make; you are accountable for it and for its "
    "use, which must not contravene the licence (6).",
    "The licensor may restrict a use that breaks the licence, and update the model; you make "
    "reasonable efforts to use its latest version (7). No trademarks are licensed (8).",
    "It comes as is, without warranty or liability (9, 10). Who offers warranty on it does so "
    "alone (11).",
    "These uses are restricted (Attachment A): to break the law; to exploit or harm minors;",
    "to make or spread verifiably false information in order to harm others, or "
    "personal information that can be used to harm an individual; to defame, disparage or harass;",
    "for fully automated decisions that impair an individual's legal rights or create "
    "or change a binding obligation;",
    "to discriminate against or harm people for their social behaviour or personality, "
    "or to discriminate by legally protected characteristics;",
    "to exploit the vulnerabilities of a group of people so as to distort their "
    "behaviour in a way that is likely to cause harm;",
    "for medical advice or the interpretation of medical results;",
    "to make or spread information for the administration of justice, law "
    "enforcement, immigration or asylum, such as to predict crime.",
)
"""The text of August 22, 2022."""

DINOV3 = LicenceToAccept(
    name="the DINOv3 License",
    setting="triposplat.accept_dinov3_license",
    why="the back end triposplat looks at pictures with Meta's DINOv3",
    read=(
        "read the DINOv3 License, https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
        "and the page of the model, "
        "https://huggingface.co/facebook/dinov3-vith16plus-pretrain-lvd1689m",
    ),
    conditions=_OF_DINOV3,
    instead="--lift.backend triposr",
    # Weights of TripoSplat from any repository hold DINOv3; those that are shipped hold nothing of
    # Meta's.
    applies=lambda settings: (
        settings.lift.backend == "triposplat" and settings.triposplat.model is not None
    ),
    accepted=lambda settings: settings.triposplat.accept_dinov3_license,
)

OPENRAIL = LicenceToAccept(
    name="the CreativeML Open RAIL-M License",
    setting="dreamgaussian.accept_openrail_license",
    why="the back end dreamgaussian asks zero123, a derivative of Stable Diffusion",
    read=(
        "read the CreativeML Open RAIL-M License, "
        "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
        "and the page of the weights that zero123 was trained from, "
        "https://huggingface.co/lambdalabs/sd-image-variations-diffusers",
        "The pages of zero123 itself say MIT; its base's restrictions of use hold for what is "
        "derived from it, too.",
    ),
    conditions=_OF_OPENRAIL,
    instead="--dreamgaussian.guidance none, or --lift.backend triposr",
    applies=lambda settings: (
        settings.lift.backend == "dreamgaussian" and settings.lift_model is not None
    ),
    accepted=lambda settings: settings.dreamgaussian.accept_openrail_license,
)

TERMS = (DINOV3, OPENRAIL)


def terms_of(settings: GenerationSettings) -> tuple[LicenceToAccept, ...]:
    """Returns the licences that have to be accepted for what these settings load."""
    return tuple(terms for terms in TERMS if terms.applies(settings))


def require_acceptance(settings: GenerationSettings) -> None:
    """Checks that the operator has accepted the licences of what these settings load.

    Raises:
        SetupError: One has not been accepted; the fix holds its conditions, one a line.
    """
    for terms in terms_of(settings):
        if not terms.accepted(settings):
            raise terms.not_accepted()
