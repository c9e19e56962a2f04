"""Owner: whether the slices of one series belong to one patient and one study."""

from collections.abc import Sequence

from pydicom import Dataset
from pydicom.dataelem import RawDataElement

from medqdm.errors import MedQDMError

UNDECODABLE = "\ufffd"  # stands in a text for bytes that its character set does not have


def check_owner(headers: Sequence[Dataset], *, where: str) -> list[str]:
    """Refuse slices of several patients or studies; careless anonymization gives them one UID.

    PatientID tells patients apart, where it is empty PatientName, and where both are empty
    PatientBirthDate. A study for each single
    slice is the work of a converter, and no reason to refuse them.

    Args:
        headers: of all slices; their values are decoded.
        where: what messages call the series.

    Returns:
        What is odd about them, one sentence each.

    Raises:
        MedQDMError: there are several patients or studies.
    """
    ids = {_text(header, "PatientID") for header in headers}
    names = {_name(header) for header in headers}
    born = {_text(header, "PatientBirthDate") for header in headers}
    patients = len(ids if any(ids) else names if any(names) else born - {""})
    studies = len({_text(header, "StudyInstanceUID") for header in headers})
    if patients > 1 or 1 < studies < len(headers):
        owner, count = ("patient", patients) if patients > 1 else ("study", studies)
        raise MedQDMError(
            f"{where}: its slices must belong to one {owner}, got {count} that share its UID; "
            "give the files of one"
        )
    warnings = []
    if studies > 1:
        warnings.append("every slice names a study of its own; a PACS will not keep them together")
    if len({_person(header) for header in headers}) > 1:
        warnings.append(
            "patient name, birth date or issuer of the patient ID differ between the slices; "
            "make sure that all are of one person"
        )
    return warnings


def _person(header: Dataset) -> tuple[str, ...]:
    others = (_text(header, keyword) for keyword in ("PatientBirthDate", "IssuerOfPatientID"))
    return _name(header), *others


def _name(header: Dataset) -> str:
    """Empty parts at the end of a name and its case mean nothing."""
    return _text(header, "PatientName").rstrip("^= ").casefold()


def _text(header: Dataset, keyword: str) -> str:
    raw = header.get_item(keyword) if keyword in header else None
    text = str(header.get(keyword) or "").strip()
    is_lossy = isinstance(raw, RawDataElement) and UNDECODABLE in text
    return f"{text} {raw.value!r}" if is_lossy and raw is not None else text
