"""A licence that the operator has to accept before anything is downloaded or loaded."""

from generation.settings import GenerationSettings
from protocol.errors import SetupError

LICENCE_PAGE = "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"
MODEL_PAGE = "https://huggingface.co/facebook/dinov3-vith16plus-pretrain-lvd1689m"
FLAG = "--triposplat.accept_dinov3_license"

CONDITIONS = (
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
"""The DINOv3 License in short, in the order of its text of August 19, 2025."""


def require_acceptance(settings: GenerationSettings) -> None:
    """Checks that the operator has accepted the licences of what these settings load.

    Weights of TripoSplat from any repository hold DINOv3; those that are shipped hold nothing of
    Meta's.

    Raises:
        SetupError: DINOv3's has not been accepted; the fix holds its conditions, one a line.
    """
    own = settings.triposplat
    if settings.lift.backend != "triposplat" or own.model is None or own.accept_dinov3_license:
        return
    raise SetupError(
        "the back end triposplat looks at pictures with Meta's DINOv3, whose licence has not been "
        f"accepted ({FLAG} is false)",
        fix="\n".join(
            (
                f"read the DINOv3 License, {LICENCE_PAGE}",
                f"and the page of the model, {MODEL_PAGE}",
                "This is its content in short; the text itself is what counts:",
                *(f"- {condition}" for condition in CONDITIONS),
                "If you accept it, say so in the settings file, or run the same again with "
                f"{FLAG} true",
                "If not, use --lift.backend triposr",
            )
        ),
    )
