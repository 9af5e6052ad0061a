// The server front's API.

/** JSON from a path of this host; an error carries the server's own sentence. */
export async function getJson(path) {
  const response = await fetch(path, { headers: { Accept: "application/json" } });
  if (response.ok) return response.json();
  let detail = `${response.status} ${response.statusText}`;
  try {
    const body = await response.json();
    if (typeof body.detail === "string") detail = body.detail;
  } catch {
    // not JSON: the status has to do
  }
  const error = new Error(detail);
  error.status = response.status;
  throw error;
}

const runPath = (id) => `/api/runs/${encodeURIComponent(id)}`;

export const listRuns = () => getJson("/api/runs");
export const readRun = (id) => getJson(runPath(id));
export const listFiles = (id) => getJson(`${runPath(id)}/files`);
export const fileLink = (id, name) => `${runPath(id)}/files/${String(name).split("/").map(encodeURIComponent).join("/")}`;
export const modelLink = (id, which) => `${runPath(id)}/model/${which}.zip`;
export const runLink = (id) => `/?run=${encodeURIComponent(id)}`;
export const compareLink = (ids) => `/compare?${ids.map((id) => `run=${encodeURIComponent(id)}`).join("&")}`;

const KINDS = ["opened", "waiting", "start", "resumed", "clients", "client", "lost", "round", "note", "finished", "failed"];

/**
 * Follow a run's events.
 * @param {string} id of the run
 * @param {number} after the number of the last line that is known already
 * @param {(kind: string, data: object, line: number) => void} take called with each event and its line
 * @param {(connected: boolean) => void} connection called when the stream opens or breaks
 * @returns {EventSource}
 */
export function follow(id, after, take, connection) {
  const source = new EventSource(`${runPath(id)}/events?after=${after}`);
  source.onopen = () => connection(true);
  source.onerror = () => connection(false);
  for (const kind of KINDS) {
    source.addEventListener(kind, (event) => take(kind, JSON.parse(event.data), Number(event.lastEventId)));
  }
  return source;
}
