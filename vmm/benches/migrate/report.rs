//! Medians, spread, the table.

use crate::case::{Case, Figures};

/// All pairs of one case.
pub(crate) struct Row {
    pub(crate) case: &'static Case,
    pub(crate) ours: Vec<Figures>,
    pub(crate) qemu: Vec<Figures>,
    /// Bytes a second of the link.
    pub(crate) probe: Vec<f64>,
}

/// One migration as JSON.
pub(crate) fn line(case: &Case, vmm: &str, pair: usize, figures: &Figures, probe: Option<f64>) {
    let one = |number: f64| (number * 1e3).round() / 1e3;
    let line = serde_json::json!({
        "bench": "migrate", "case": case.name, "vmm": vmm, "pair": pair,
        "ended": figures.ended, "total_ms": one(figures.total_ms),
        "downtime_ms": one(figures.downtime_ms), "guest_gap_ms": figures.gap_ms,
        "sent_bytes": figures.sent_bytes, "rounds": figures.rounds,
        "cpu_s_per_gb": one(figures.cpu_s_per_gb),
        "link_bytes_per_sec": probe.map(f64::round),
    });
    println!("{line}");
}

/// Least, median and most.
fn spread(mut values: Vec<f64>) -> Option<[f64; 3]> {
    values.sort_by(f64::total_cmp);
    Some([*values.first()?, values[values.len() / 2], *values.last()?])
}

/// The 50th and the 99th percentile, of enough values for the latter.
fn percentiles(mut values: Vec<f64>) -> Option<[f64; 2]> {
    const ENOUGH: usize = 100;
    values.sort_by(f64::total_cmp);
    let at = |percent: usize| values[(values.len() * percent).div_ceil(100) - 1];
    (values.len() >= ENOUGH).then(|| [at(50), at(99)])
}

/// The table, on standard error.
pub(crate) fn table(rows: &[Row]) {
    eprintln!("median (least–most); times in ms, CPU in s/GB; pairs: ours/QEMU that ended\n");
    for row in rows {
        let gaps = row.ours.iter().filter(|one| one.ended).map(|one| one.gap_ms).collect();
        if let Some([p50, p99]) = percentiles(gaps) {
            eprintln!("{}: guest gap of ours p50 {p50:.0}, p99 {p99:.0}\n", row.case.name);
        }
    }
    eprintln!(
        "| case | total ours | total QEMU | ratio | guest gap ours | guest gap QEMU | CPU ours | \
         CPU QEMU | of the probe | pairs |"
    );
    eprintln!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for row in rows {
        let of = |figures: &[Figures], value: &dyn Fn(&Figures) -> f64| {
            spread(figures.iter().filter(|one| one.ended).map(value).collect())
        };
        let cell = |spread: Option<[f64; 3]>, digits: usize| {
            spread.map_or("–".to_owned(), |[least, median, most]| {
                format!("{median:.digits$} ({least:.digits$}–{most:.digits$})")
            })
        };
        let both = |value: &dyn Fn(&Figures) -> f64, digits| {
            [&row.ours, &row.qemu].map(|figures| cell(of(figures, value), digits)).join(" | ")
        };
        let total = |figures: &[Figures]| of(figures, &|one| one.total_ms).map(|spread| spread[1]);
        let ratio = total(&row.ours).zip(total(&row.qemu)).map(|(ours, qemu)| ours / qemu);
        let rate = |(one, probe): (&Figures, &f64)| {
            one.sent_bytes / (one.total_ms - one.downtime_ms).max(1.0) * 1e3 / probe
        };
        let rates = row.ours.iter().zip(&row.probe).filter(|(one, _)| one.ended).map(rate);
        let ended = |figures: &[Figures]| figures.iter().filter(|one| one.ended).count();
        eprintln!(
            "| {} | {} | {} | {} | {} | {} | {}/{} of {} |",
            row.case.name,
            both(&|one| one.total_ms, 0),
            ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}")),
            both(&|one| one.gap_ms, 0),
            both(&|one| one.cpu_s_per_gb, 2),
            cell(spread(rates.collect()), 2),
            ended(&row.ours),
            ended(&row.qemu),
            row.ours.len(),
        );
    }
}
