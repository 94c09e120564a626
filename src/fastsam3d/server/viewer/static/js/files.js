/** Files that people drop or choose, folders included. */

const MAX_FILES = 20000;
const JUNK = /^(\.|thumbs\.db$|desktop\.ini$)|(^|\/)(dicomdir|__macosx)$/i;
const READABLE = /\.(nii|nii\.gz|nrrd|mha)$/i;

/** Files of a drop, with those of dropped folders. */
export async function droppedFiles(transfer) {
  const entries = [...transfer.items]
    .map((item) => item.webkitGetAsEntry?.())
    .filter((entry) => entry);
  if (!entries.length) return usable([...transfer.files]);
  const files = [];
  for (const entry of entries) await collect(entry, files);
  return usable(files);
}

/** Without system files; in the order of their paths. */
export function usable(files) {
  const path = (file) => file.webkitRelativePath || file.name;
  return files
    .filter((file) => !JUNK.test(file.name) && file.size > 0)
    .sort((a, b) => path(a).localeCompare(path(b), "en", { numeric: true }));
}

/** Whether the browser can show this choice without help from the server. */
export function isReadableHere(files) {
  return files.length === 1 && READABLE.test(files[0].name);
}

/** What to call the scan. */
export function titleOf(files) {
  if (files.length === 1) return files[0].name;
  const folder = (files[0].webkitRelativePath ?? "").split("/")[0];
  return folder || `${files.length} files`;
}

/** Hand a blob to the browser's downloads. */
export function saveAs(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function collect(entry, files) {
  if (files.length >= MAX_FILES) throw new Error(`More than ${MAX_FILES} files; drop one series.`);
  if (entry.isFile) {
    files.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!batch.length) return;
    for (const child of batch) await collect(child, files);
  }
}
