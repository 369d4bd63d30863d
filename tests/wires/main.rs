//! Every wire, with guests on it: what reaches what must be what `wirevm explain` prints.

mod reach;
mod row;
mod stock;
mod world;

#[test]
fn every_row_of_the_table_is_one_of_the_test() {
    let explained: Vec<_> = reach::explained().into_keys().collect();
    let mut tried: Vec<_> = row::Row::all().iter().map(|row| row.name).collect();
    tried.sort_unstable();
    assert_eq!(explained, tried);
}
