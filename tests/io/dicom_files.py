"""Volumes as DICOM series, complete enough for a PACS and for segmentations that refer to them."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from fastsam3d.volume import Volume

STUDY = "1.2.826.0.1.3680043.8.498.10"
SERIES = "1.2.826.0.1.3680043.8.498.11"
FRAME = "1.2.826.0.1.3680043.8.498.12"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"


def write_series(folder: Path, volume: Volume, *, series: str = SERIES, **changes: object) -> None:
    """Write a volume as a CT series; instance numbers run against the slices' order."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.geometry.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    axes = lps[:3, :3] / spacing
    num_slices = volume.shape[2]
    for k in range(num_slices):
        position = lps @ (0, 0, k, 1)
        values: dict[str, object] = {
            "SOPClassUID": CT_IMAGE, "SOPInstanceUID": f"{series}.{k + 1}",
            "StudyInstanceUID": STUDY, "SeriesInstanceUID": series, "FrameOfReferenceUID": FRAME,
            "PatientID": "P1", "PatientName": "Phantom^Ball", "PatientBirthDate": "",
            "PatientSex": "O", "StudyID": "1", "StudyDate": "20260101", "StudyTime": "120000",
            "AccessionNumber": "", "ReferringPhysicianName": "", "SeriesNumber": 1,
            "InstanceNumber": num_slices - k, "Modality": "CT", "SeriesDescription": "ball",
            "Manufacturer": "phantom", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "PositionReferenceIndicator": "",
            "Rows": volume.shape[1], "Columns": volume.shape[0], "BitsAllocated": 16,
            "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1, "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2", "RescaleSlope": 1, "RescaleIntercept": 0,
            "WindowCenter": 500, "WindowWidth": 1000,
            "PixelSpacing": [_ds(spacing[1]), _ds(spacing[0])], "SliceThickness": _ds(spacing[2]),
            "ImageOrientationPatient": [_ds(value) for value in axes[:, :2].T.ravel()],
            "ImagePositionPatient": [_ds(value) for value in position[:3]],
            "PixelData": np.ascontiguousarray(volume.array[:, :, k].T.astype("<i2")).tobytes(),
            **changes,
        }  # fmt: skip
        _save(values, folder / f"{k:03d}.dcm")


def _save(values: dict[str, object], path: Path) -> None:
    made = Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.save_as(path, enforce_file_format=True)


def _ds(value: float) -> str:
    return f"{value:.10g}"
