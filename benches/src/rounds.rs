//! Contenders in turn, round by round, so that what changes on the machine meanwhile changes for all of them.

use crate::Result;
use crate::measure::Measured;

/// One line of a table: a program, and how one run of it is prepared, measured and checked.
pub struct Contender<'a> {
    /// Short name, as used by `--only`.
    pub name: String,
    /// The flags or settings that matter.
    pub note: String,
    /// One run from a cold state. What is not to be measured happens outside [`crate::measure::measure`].
    pub run: Box<dyn FnMut() -> Result<Measured> + 'a>,
}

/// All runs of one contender.
#[derive(Debug)]
pub struct Row {
    /// Name of the contender.
    pub name: String,
    /// Its note.
    pub note: String,
    /// One entry a round, up to a failure.
    pub runs: Vec<Measured>,
    /// Why it ended early.
    pub failure: Option<String>,
}

/// Runs `rounds` rounds. Each begins with another contender than the one before; one that fails is out.
pub fn run(mut contenders: Vec<Contender<'_>>, rounds: usize) -> Vec<Row> {
    let row = |c: &Contender<'_>| Row {
        name: c.name.clone(),
        note: c.note.clone(),
        runs: vec![],
        failure: None,
    };
    let mut rows: Vec<Row> = contenders.iter().map(row).collect();
    let count = contenders.len();
    for round in 0..rounds {
        for turn in 0..count {
            let index = (round + turn) % count;
            let row = &mut rows[index];
            if row.failure.is_some() {
                continue;
            }
            match (contenders[index].run)() {
                Ok(measured) => {
                    eprintln!("round {} of {rounds}: {} {:.2} s", round + 1, row.name, measured.wall_s);
                    row.runs.push(measured);
                }
                Err(failure) => {
                    eprintln!("round {} of {rounds}: {} FAILED: {failure}", round + 1, row.name);
                    row.failure = Some(failure);
                }
            }
        }
    }
    rows
}

impl Row {
    /// Median of one figure over the runs; none without runs.
    pub fn median(&self, figure: impl Fn(&Measured) -> f64) -> Option<f64> {
        median(self.runs.iter().map(figure).collect())
    }

    /// Slowest by fastest wall time: how far to trust the median.
    pub fn spread(&self) -> Option<f64> {
        let walls = || self.runs.iter().map(|run| run.wall_s);
        let (least, most) = (walls().reduce(f64::min)?, walls().reduce(f64::max)?);
        (least > 0.0).then_some(most / least)
    }

    /// The most that others used during one of the runs, in cores.
    pub fn others(&self) -> Option<f64> {
        self.runs.iter().map(|run| run.others_cores).reduce(f64::max)
    }

    /// Median over the rounds of this figure by that of `base` in the same round.
    pub fn ratio(&self, base: &Self, figure: impl Fn(&Measured) -> f64) -> Option<f64> {
        let pairs = self.runs.iter().zip(&base.runs).filter(|(_, base)| figure(base) > 0.0);
        median(pairs.map(|(run, base)| figure(run) / figure(base)).collect())
    }
}

/// Middle value, or the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn measured(wall_s: f64) -> Measured {
        Measured {
            wall_s,
            durable_s: 0.0,
            user_s: wall_s,
            sys_s: 0.0,
            rss_bytes: 0,
            servers_s: 0.0,
            others_cores: 0.0,
            stored_bytes: None,
            output: None,
        }
    }

    #[test]
    fn medians_and_paired_ratios() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        let row = |walls: &[f64]| Row {
            name: String::new(),
            note: String::new(),
            runs: walls.iter().map(|&wall| measured(wall)).collect(),
            failure: None,
        };
        // The machine was twice as slow in the second round; the ratio of each pair is the same.
        assert_eq!(row(&[4.0, 8.0]).ratio(&row(&[1.0, 2.0]), |run| run.wall_s), Some(4.0));
        assert_eq!(row(&[4.0, 8.0]).spread(), Some(2.0));
    }

    #[test]
    fn rounds_rotate_and_a_failure_ends_one_contender_only() {
        let order = &RefCell::new(String::new());
        let contender = |name: &'static str, fails: bool| Contender {
            name: name.to_owned(),
            note: String::new(),
            run: Box::new(move || {
                order.borrow_mut().push_str(name);
                if fails { Err("no".to_owned()) } else { Ok(measured(1.0)) }
            }),
        };
        let rows = run(
            vec![contender("a", false), contender("b", true), contender("c", false)],
            2,
        );
        assert_eq!(*order.borrow(), "abcca");
        assert_eq!(rows.iter().map(|row| row.runs.len()).collect::<Vec<_>>(), [2, 0, 2]);
        assert_eq!(rows[1].failure.as_deref(), Some("no"));
    }
}
