//! Are rotations spread over time, or does the fleet march in step?

use std::fmt::Write;
use std::time::Duration;

use crate::judge::{Away, Client};
use crate::moment::Moment;

/// The first rotations still show that all clients were born in the same second; from this one on they must not.
const FIRST_JUDGED: usize = 3;
/// The window in which rotations count as simultaneous.
const WINDOW: Duration = Duration::from_secs(1);
/// The largest part of the clients that may rotate in one window, in percent. The agent looks at whole seconds, so that two of its
/// looks fall into one window. With lives of a minute and fifty clients, chance alone then puts 14 % into the fullest one,
/// and more than 26 % once in two thousand runs (20 % once in sixty); an agent that renews only every five seconds, 32 %, and more than
/// 26 % in nine of ten runs.
const MOST_PERCENT: usize = 26;
/// So few in one window are no crowd, whatever part they are.
const NO_CROWD: usize = 3;

/// Every client's `number`-th rotation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Cycle {
    pub(crate) number: usize,
    pub(crate) rotations: usize,
    /// The most that fell into one window.
    pub(crate) busiest: usize,
}

/// Cycles that at least half of the clients went through undisturbed by the server's crash.
pub(crate) fn judged_cycles(clients: &[Client], away: Option<Away>) -> Vec<Cycle> {
    let rotations: Vec<Vec<Moment>> = clients.iter().map(Client::rotations).collect();
    let longest = rotations.iter().map(Vec::len).max().unwrap_or(0);
    (FIRST_JUDGED..=longest)
        .map(|number| {
            let mut moments: Vec<Moment> = rotations
                .iter()
                .filter_map(|of_one| of_one.get(number - 1).copied())
                .filter(|at| away.is_none_or(|away| *at < away.from || *at > away.to.plus(Away::SETTLED_IN)))
                .collect();
            moments.sort();
            Cycle { number, rotations: moments.len(), busiest: busiest(&moments) }
        })
        .filter(|cycle| cycle.rotations * 2 >= clients.len())
        .collect()
}

/// Cycles in which too many clients rotated in one window.
pub(crate) fn bunched(cycles: &[Cycle], clients: usize) -> Vec<String> {
    let most = (clients * MOST_PERCENT / 100).max(NO_CROWD);
    cycles
        .iter()
        .filter(|cycle| cycle.busiest > most)
        .map(|cycle| {
            format!(
                "{} of {} clients rotated for the {}th time within {} s, allowed are {most}",
                cycle.busiest,
                clients,
                cycle.number,
                WINDOW.as_secs()
            )
        })
        .collect()
}

/// The most of these sorted moments that lie within one window.
fn busiest(moments: &[Moment]) -> usize {
    let within = |from: &Moment| moments.iter().filter(|at| *at >= from && at.since(*from) < WINDOW).count();
    moments.iter().map(within).max().unwrap_or(0)
}

/// Rotations in each second since `from`, ten seconds a line, and the largest number in one second.
pub(crate) fn histogram(clients: &[Client], from: Moment) -> (Vec<String>, usize) {
    let mut seconds: Vec<usize> = Vec::new();
    for at in clients.iter().flat_map(Client::rotations) {
        let second = usize::try_from(at.since(from).as_secs()).unwrap_or(usize::MAX);
        if second >= seconds.len() {
            seconds.resize(second + 1, 0);
        }
        seconds[second] += 1;
    }
    let lines = seconds
        .chunks(10)
        .enumerate()
        .map(|(tens, counts)| {
            counts.iter().fold(format!("{:>6} s |", tens * 10), |mut line, count| {
                let written = if *count == 0 { write!(line, "   .") } else { write!(line, "{count:>4}") };
                written.expect("a string takes everything");
                line
            })
        })
        .collect();
    (lines, seconds.into_iter().max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::made_up::{at, client, svid};

    /// Ten clients whose third rotation comes at the given seconds.
    fn fleet(thirds: [u64; 10]) -> Vec<Client> {
        let one = |third| {
            client(vec![svid("a", 0), svid("b", 20), svid("c", 40), svid("d", third), svid("e", third)], 200)
        };
        let mut clients: Vec<Client> = thirds.into_iter().map(one).collect();
        for client in &mut clients {
            client.lines.pop();
        }
        clients
    }

    #[test]
    fn three_of_ten_in_one_second_are_allowed_and_four_are_not() {
        let spread = fleet([60, 60, 60, 61, 62, 64, 66, 68, 70, 72]);
        let cycles = judged_cycles(&spread, None);
        assert_eq!(cycles, [Cycle { number: 3, rotations: 10, busiest: 3 }]);
        assert_eq!(bunched(&cycles, 10), Vec::<String>::new());
        let cycles = judged_cycles(&fleet([60, 60, 60, 60, 61, 64, 66, 68, 70, 72]), None);
        assert_eq!(bunched(&cycles, 10).len(), 1);
    }

    #[test]
    fn early_rotations_and_those_after_a_crash_are_not_judged() {
        let crowd = fleet([60; 10]);
        assert_eq!(
            judged_cycles(&crowd, None).len(),
            1,
            "the first two rotations are in step and not judged"
        );
        let away = Away { from: at(58_000), to: at(59_000) };
        assert_eq!(judged_cycles(&crowd, Some(away)), []);
    }

    #[test]
    fn the_histogram_has_a_column_for_each_second() {
        let (lines, most) = histogram(&fleet([60; 10]), at(15_000));
        assert_eq!(lines[0], "     0 s |   .   .   .   .   .  10   .   .   .   .");
        assert_eq!((lines.len(), most), (5, 10));
    }
}
