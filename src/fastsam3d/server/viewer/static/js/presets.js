/** Windows: what intensities are black and white. */

/** Level and width in Hounsfield units. */
const CT = [
  ["soft", "Soft tissue", 40, 400],
  ["lung", "Lung", -600, 1500],
  ["bone", "Bone", 450, 1800],
  ["brain", "Brain", 40, 80],
  ["liver", "Liver", 90, 150],
];

const AIR_TO_FAT = [-1100, -100];
const PADDINGS = [-1500, -2000, -2048, -3024];

/** Whether intensities look like Hounsfield units, when no header says what the scan is. */
export function looksLikeCt({ modality, intensity: { p1 } }) {
  if (modality) return modality === "CT";
  return (p1 >= AIR_TO_FAT[0] && p1 <= AIR_TO_FAT[1]) || PADDINGS.includes(p1);
}

/**
 * @param {{modality?: string, intensity: {min, max, p1, p99}}} scan
 * @returns {{id: string, title: string, group: string, low: number, high: number}[]} those that fit
 *   the scan come first, the default at the head
 */
export function presetsFor(scan) {
  const { min, max, p1, p99 } = scan.intensity;
  const at = (share) => p1 + (p99 - p1) * share;
  const group = "Any scan";
  const any = [
    { id: "auto", title: "Auto (1 to 99 %)", group, low: p1, high: p99 },
    { id: "strong", title: "More contrast", group, low: at(0.1), high: at(0.7) },
    { id: "dark", title: "Dark structures", group, low: p1, high: at(0.4) },
    { id: "full", title: "Full range", group, low: min, high: max },
  ];
  const ct = CT.map(([id, title, level, width]) => ({
    id,
    title,
    group: "CT",
    low: level - width / 2,
    high: level + width / 2,
  }));
  return looksLikeCt(scan) ? [...ct, ...any] : [...any, ...ct];
}
