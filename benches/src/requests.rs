//! What a run asked of its storage: requests, bytes and latencies by operation, as `blockferry` tells them itself.

use std::fmt::Write as _;

use serde_json::Value;

use crate::MIB;
use crate::measure::Measured;
use crate::rounds::Row;

/// The operation of `storage` called `name`; null when there was none.
fn operation<'a>(run: &'a Measured, name: &str) -> &'a Value {
    static NONE: Value = Value::Null;
    run.output
        .as_ref()
        .map_or(&NONE, |output| &output["storage"]["operations"][name])
}

/// Requests of a run in all; not a number when it does not tell.
pub fn total(run: &Measured) -> f64 {
    let output = run.output.as_ref();
    let told = output.and_then(|output| output["storage"]["requests"].as_u64());
    told.map_or(f64::NAN, |count| count as f64)
}

/// Bytes that the operations `name` moved; not a number when a run does not tell.
pub fn bytes(run: &Measured, name: &str) -> f64 {
    operation(run, name)["bytes"]
        .as_u64()
        .map_or(f64::NAN, |bytes| bytes as f64)
}

/// A table of the last run of each row that tells its requests; empty when none does.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let operations = row.runs.last().and_then(|run| {
            let output = run.output.as_ref()?;
            output["storage"]["operations"].as_object()
        });
        for (name, told) in operations.into_iter().flatten() {
            let number = |field: &str| told[field].as_u64().unwrap_or(0);
            let ms = |field: &str| number(field) as f64 / 1000.0;
            let _ = writeln!(
                text,
                "| {} | {name} | {} | {:.1} | {} | {} | {:.1} | {:.1} | {:.1} |",
                row.name,
                number("count"),
                number("bytes") as f64 / MIB,
                number("retries"),
                number("errors") + number("missing"),
                ms("latencyUsP50"),
                ms("latencyUsP99"),
                ms("latencyUsMax"),
            );
        }
    }
    if text.is_empty() {
        return text;
    }
    let head = "| requests of | operation | count | MiB | retries | not answered | p50 ms | p99 ms | max ms |\n\
                |---|---|---|---|---|---|---|---|---|\n";
    format!("{head}{text}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn requests_are_those_the_program_tells() {
        let put = json!({
            "count": 3, "bytes": 2 << 20, "missing": 1, "errors": 0, "retries": 2, "throttled": 0,
            "latencyUsMean": 1500, "latencyUsP50": 1000, "latencyUsP99": 2000, "latencyUsMax": 2500,
        });
        let run = Measured {
            wall_s: 1.0,
            durable_s: 0.0,
            user_s: 1.0,
            sys_s: 0.0,
            rss_bytes: 0,
            servers_s: 0.0,
            others_cores: 0.0,
            stored_bytes: None,
            output: Some(json!({"storage": {"requests": 5, "operations": {"put": put}}})),
        };
        assert_eq!((total(&run), bytes(&run, "put")), (5.0, 2.0 * MIB));
        assert!(bytes(&run, "get").is_nan());
        let row = |runs| Row {
            name: "x".to_owned(),
            note: String::new(),
            runs,
            failure: None,
        };
        let text = table(&[row(vec![run])]);
        assert!(
            text.ends_with("| x | put | 3 | 2.0 | 2 | 1 | 1.0 | 2.0 | 2.5 |\n"),
            "{text}"
        );
        assert_eq!(table(&[row(vec![])]), "");
    }
}
