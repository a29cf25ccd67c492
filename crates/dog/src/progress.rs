//! The bar of a long job, on a terminal only: never with raw or JSON output, never into a file.

use crate::verbs::Mode;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Draws a bar with rate and time left; remove it with `finish_and_clear`.
#[must_use]
pub fn bar(bytes: u64, mode: Mode, stdout_is_terminal: bool) -> ProgressBar {
    if mode != Mode::Human || !stdout_is_terminal {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stdout());
    // The template is ours; if it did not parse, the default one would do.
    if let Ok(style) = ProgressStyle::with_template(
        "{percent:>3} % [{wide_bar}] {binary_bytes} / {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left",
    ) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
