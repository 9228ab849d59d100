//! What a broker can do to a fleet, by mistake or on purpose, and what a damaged outbox does to a device: it serves
//! on, says in plain words what is wrong, and goes on by itself when that is mended.

mod denied;
mod forgetful;
mod outbox;
mod poison;
mod slow;
mod statuses;
