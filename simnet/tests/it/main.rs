//! The simulation itself: a small one by hand, the same run twice, faults that it must notice, the scenarios.

mod found;
mod kit;
mod replay;
mod sabotage;
mod scenarios;
