//! Every wire, with guests on it: what reaches what must be what `wirevm explain` prints.

mod reach;
mod row;
mod stock;
mod world;
