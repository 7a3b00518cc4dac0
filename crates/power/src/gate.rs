//! What this process remembers of each management controller: whose turn it is, how often a login failed, and how many
//! sessions are open. Drivers are opened anew for every action, so this lives beside them.
//!
//! Controllers lock an account after three to five wrong passwords, often for everybody. So a password that was refused
//! is not tried again, and only [`Budget::attempts`] different ones within [`Budget::window`]. One operation at a time is
//! under way at a controller, because many allow four sessions only and answer wrongly when two talk at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::secret::Secret;
use crate::{Address, Error, Outcome, Result};

/// How many refused passwords a controller may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Refused logins within the window, after which nothing is tried any more.
    pub(crate) attempts: u32,
    /// How long a refused login counts.
    pub(crate) window: Duration,
}

impl Budget {
    /// Takes `login_attempts=1..5` and `login_window_seconds=1..86400`.
    pub(crate) fn take(address: &mut Address) -> Result<Budget> {
        Ok(Budget {
            attempts: address.number("login_attempts", 1..=5)?.unwrap_or(2),
            window: Duration::from_secs(address.number("login_window_seconds", 1..=86_400)?.unwrap_or(1_800)),
        })
    }
}

/// What was counted at one controller since this process started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// `user@host:port` behind the driver's name.
    pub controller: String,
    /// Sessions opened.
    pub sessions_opened: u64,
    /// Sessions that we closed and whose end the controller confirmed.
    pub sessions_closed: u64,
    /// Sessions whose end the controller did not confirm; it forgets them at its own time.
    pub sessions_lost: u64,
    /// Logins that the controller refused.
    pub logins_refused: u64,
    /// Logins that we did not try, because the budget was spent.
    pub logins_withheld: u64,
}

/// The counts of every controller that saw a session of ours or refused us, by name.
pub fn controllers() -> Vec<Counts> {
    let all = gates().values().map(|gate| gate.book().counts.clone()).collect::<Vec<_>>();
    let nothing = |counts: &Counts| *counts == Counts { controller: counts.controller.clone(), ..Counts::default() };
    all.into_iter().filter(|counts| !nothing(counts)).collect()
}

/// A controller's gate.
pub(crate) struct Gate {
    turn: tokio::sync::Mutex<()>,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    counts: Counts,
    refused: Vec<(Instant, Secret)>,
}

fn gates() -> MutexGuard<'static, BTreeMap<String, Arc<Gate>>> {
    static GATES: OnceLock<Mutex<BTreeMap<String, Arc<Gate>>>> = OnceLock::new();
    GATES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gate {
    /// The gate of the controller called so; the same for every driver that names it.
    pub(crate) fn of(controller: &str) -> Arc<Gate> {
        let mut gates = gates();
        let gate = gates.entry(controller.to_owned()).or_insert_with(|| {
            let counts = Counts { controller: controller.to_owned(), ..Counts::default() };
            Arc::new(Gate {
                turn: tokio::sync::Mutex::default(),
                book: Mutex::new(Book { counts, refused: Vec::new() }),
            })
        });
        Arc::clone(gate)
    }

    /// Waits until nobody else is at work here. The caller's deadline ends the wait.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Works when its turn has come.
    pub(crate) async fn done(&self, work: impl Future<Output = Result<()>>) -> Result<Outcome> {
        let _turn = self.turn().await;
        work.await?;
        Ok(Outcome::Done)
    }

    /// Refuses when this password was refused before, or the budget is spent.
    pub(crate) fn may_log_in(&self, target: &str, secret: &Secret, budget: Budget) -> Result<()> {
        let mut book = self.book();
        let now = Instant::now();
        book.refused.retain(|(at, _)| now.duration_since(*at) < budget.window);
        let same = book.refused.iter().any(|(_, refused)| refused == secret);
        let spent = book.refused.len() >= budget.attempts as usize;
        if !same && !spent {
            return Ok(());
        }
        book.counts.logins_withheld += 1;
        let oldest = book.refused.first().map_or(Duration::ZERO, |(at, _)| now.duration_since(*at));
        let wait = budget.window.saturating_sub(oldest).as_secs().max(1);
        Err(Error::refused(
            target,
            if same {
                format!(
                    "it refused this password before, so it is not tried again for {wait} s, lest the account be locked; correct the password file, which takes effect at once"
                )
            } else {
                format!(
                    "it refused {} passwords, which is as many as are tried within {} s, lest the account be locked; make sure that the password is right and wait {wait} s",
                    book.refused.len(),
                    budget.window.as_secs()
                )
            },
        ))
    }

    pub(crate) fn login_refused(&self, secret: &Secret) {
        let mut book = self.book();
        book.counts.logins_refused += 1;
        book.refused.push((Instant::now(), secret.clone()));
    }

    /// A login that went well shows that the account is not in danger.
    pub(crate) fn login_worked(&self) {
        self.book().refused.clear();
    }

    pub(crate) fn session_opened(&self) {
        self.book().counts.sessions_opened += 1;
    }

    pub(crate) fn session_ended(&self, confirmed: bool) {
        let mut book = self.book();
        if confirmed {
            book.counts.sessions_closed += 1;
        } else {
            book.counts.sessions_lost += 1;
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget { attempts: 2, window: Duration::from_secs(60) };

    #[tokio::test(start_paused = true)]
    async fn a_refused_password_is_not_tried_again_and_another_one_is_within_the_budget() {
        let gate = Gate::of("test gate-budget");
        let (one, two, three) = (Secret::new("one"), Secret::new("two"), Secret::new("three"));
        gate.may_log_in("BMC", &one, BUDGET).unwrap();
        gate.login_refused(&one);
        let error = gate.may_log_in("BMC", &one, BUDGET).unwrap_err().to_string();
        assert!(error.contains("refused this password before") && error.contains("60 s"), "{error}");
        gate.may_log_in("BMC", &two, BUDGET).unwrap();
        gate.login_refused(&two);
        let error = gate.may_log_in("BMC", &three, BUDGET).unwrap_err().to_string();
        assert!(error.contains("as many as are tried") && !error.contains("three"), "{error}");
        tokio::time::advance(Duration::from_secs(61)).await;
        gate.may_log_in("BMC", &one, BUDGET).unwrap();
        let counts = controllers().into_iter().find(|counts| counts.controller == "test gate-budget").unwrap();
        assert_eq!((counts.logins_refused, counts.logins_withheld), (2, 2));
    }

    #[tokio::test]
    async fn a_login_that_works_restores_the_budget() {
        let gate = Gate::of("test gate-restored");
        gate.login_refused(&Secret::new("one"));
        gate.login_worked();
        gate.may_log_in("BMC", &Secret::new("one"), BUDGET).unwrap();
        assert!(Arc::ptr_eq(&gate, &Gate::of("test gate-restored")));
    }
}
