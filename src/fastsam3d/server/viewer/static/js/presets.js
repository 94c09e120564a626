/** Windows: what intensities are black and white. */

/** Level and width in Hounsfield units. */
const CT = [
  ["soft", "Soft tissue", 40, 400],
  ["lung", "Lung", -600, 1500],
  ["bone", "Bone", 450, 1800],
  ["brain", "Brain", 40, 80],
  ["liver", "Liver", 90, 150],
];

const HOUNSFIELD_AIR = -500;
const HOUNSFIELD_LOWEST = -4096;

/** Whether intensities look like Hounsfield units, when no header says what the scan is. */
export function looksLikeCt({ modality, intensity }) {
  if (modality) return modality === "CT";
  return intensity.min <= HOUNSFIELD_AIR && intensity.min >= HOUNSFIELD_LOWEST;
}

/**
 * @param {{modality?: string, intensity: {min, max, p1, p99}}} scan
 * @returns {{id: string, title: string, low: number, high: number}[]} the first is the default
 */
export function presetsFor(scan) {
  const { min, max, p1, p99 } = scan.intensity;
  const automatic = [
    { id: "auto", title: "Auto (1 to 99 %)", low: p1, high: p99 },
    { id: "full", title: "Full range", low: min, high: max },
  ];
  if (!looksLikeCt(scan)) {
    const span = p99 - p1;
    const strong = { id: "strong", title: "More contrast", low: p1 + span * 0.1, high: p1 + span * 0.7 };
    const dark = { id: "dark", title: "Dark structures", low: p1, high: p1 + span * 0.4 };
    return [automatic[0], strong, dark, automatic[1]];
  }
  const ct = CT.map(([id, title, level, width]) => ({
    id,
    title,
    low: level - width / 2,
    high: level + width / 2,
  }));
  return [...ct, ...automatic];
}
