//! Medians, spread, the table.

use crate::case::{Case, Unit};

const VMMS: [&str; 3] = ["ballast-vmm", "qemu", "qemu-direct"];

/// All rounds of one case, by VMM.
pub(crate) struct Row {
    pub(crate) case: &'static Case,
    rates: [Vec<f64>; 3],
}

impl Row {
    pub(crate) fn new(case: &'static Case) -> Self {
        Self { case, rates: Default::default() }
    }

    pub(crate) fn add(&mut self, vmm: &str, rate: f64) {
        for (name, rates) in VMMS.iter().zip(&mut self.rates) {
            if *name == vmm {
                rates.push(rate);
            }
        }
    }
}

fn unit(case: &Case) -> &'static str {
    match case.unit {
        Unit::PerSecond => "1/s",
        Unit::MegabytesPerSecond => "MB/s",
    }
}

/// One measurement as JSON.
pub(crate) fn line(case: &Case, vmm: &str, round: usize, rate: f64) {
    let (name, unit, rate) = (case.name, unit(case), (rate * 10.0).round() / 10.0);
    let line = serde_json::json!({
        "bench": "devices", "case": name, "vmm": vmm, "round": round, "rate": rate, "unit": unit,
    });
    println!("{line}");
}

/// Least, median and most.
fn spread(values: &[f64]) -> Option<[f64; 3]> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    Some([*values.first()?, values[values.len() / 2], *values.last()?])
}

/// The table, on standard error.
pub(crate) fn table(rows: &[Row]) {
    eprintln!("median (least–most); the ratio is of the medians, to the better of QEMU's\n");
    eprintln!("| case | unit | ours | QEMU | QEMU, direct | ratio |");
    eprintln!("| --- | --- | --- | --- | --- | --- |");
    for row in rows {
        let spreads = row.rates.each_ref().map(|rates| spread(rates));
        let cells = spreads.map(|spread| {
            spread.map_or("–".to_owned(), |[least, median, most]| {
                format!("{median:.0} ({least:.0}–{most:.0})")
            })
        });
        let [ours, cached, direct] = spreads.map(|spread| spread.map(|spread| spread[1]));
        let theirs = cached.into_iter().chain(direct).max_by(f64::total_cmp);
        let ratio = ours.zip(theirs).map(|(ours, theirs)| ours / theirs);
        let ratio = ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
        eprintln!("| {} | {} | {} | {ratio} |", row.case.name, unit(row.case), cells.join(" | "));
    }
}
