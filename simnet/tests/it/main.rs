//! The simulation itself: a small one by hand, files in it, the same run twice, faults that it must notice, the scenarios; a
//! store alone on the simulated disk.

mod files;
mod found;
mod kit;
mod replay;
mod sabotage;
mod scenarios;
mod store;
