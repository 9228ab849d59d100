//! The Open Inference Protocol (v2) over HTTP: what clients of Triton, KServe and the like speak.
//!
//! | path | answer |
//! |---|---|
//! | GET `/v2` | name, version, extensions |
//! | GET `/v2/health/live` | 200 `{"live":true}`: the process answers requests |
//! | GET `/v2/health/ready` | 200 `{"ready":true}`: every model that this device should serve is loaded and answers (a device that has none yet is ready); otherwise 503 and why |
//! | GET `/v2/models` | the names of the served models |
//! | GET `/v2/models/M[/versions/V]` | versions, inputs, outputs |
//! | GET `/v2/models/M[/versions/V]/ready` | 200: this version is loaded, its worker lives and answers; 503 otherwise |
//! | POST `/v2/models/M[/versions/V]/infer` | the answer ([`infer`]) |
//! | GET `/v2/models/M[/versions/V]/config` | the tensors as Triton's tools want them |
//! | GET `/v2/models/stats`, `/v2/models/M[/versions/V]/stats` | requests and times since each version was loaded |
//! | POST `/v2/repository/index` | what is served, and what should be and is not; `{"ready": true}`: only the first |
//! | POST `/v2/repository/models/M/load`, `…/unload` | 403: what a device serves is what its fleet's keys signed |
//!
//! `V` is the semantic version, the release number or a label of the model's routing. Loading another model or version changes none of the
//! three health answers; a worker that died makes its model and the device not ready until it is back.
//! Extensions: `binary_tensor_data`, `classification` ([`classes`]), `model_configuration`, `parameters`, `sequence` and
//! `statistics`. A body may be compressed (`Content-Encoding: gzip`, `zstd` or
//! `deflate`), and a long answer is when `Accept-Encoding` asks for it.

pub mod classes;
pub mod infer;
pub mod inputs;
pub mod metadata;
pub mod reply;
pub mod repository;
pub mod request;
