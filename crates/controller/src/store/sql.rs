//! The store in SQL that runs unchanged on SQLite and PostgreSQL.
//!
//! sqlx's `Any` driver knows TEXT, BIGINT and DOUBLE PRECISION on both, `$1`
//! placeholders and `ON CONFLICT`; nothing else is used. Only the statements
//! that begin transactions and set up a connection differ ([`Engine`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use boot::director::Lease;
use data_encoding::HEXUPPER;
use fleet::change::{Change, Note, Snapshot};
use fleet::deployment::Deployment;
use fleet::ids::{DeploymentId, Millis, NodeName};
use fleet::node::{Node, Rack};
use fleet::run::Run;
use fleet::set::MachineSet;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::Migrator;
use sqlx::{Any, AnyPool, ConnectOptions, Connection, Executor, Row, Transaction};

use super::{Revision, Store, TIMELINE_LINES};
use crate::error::Error;

static MIGRATOR: Migrator = sqlx::migrate!("./migrations");

/// No statement of ours comes near; a database that takes longer is away.
const LIMIT: Duration = Duration::from_secs(30);
/// A full read of 100,000 nodes takes seconds.
const LOAD_LIMIT: Duration = Duration::from_secs(300);
/// How many lines a node's timeline may grow by before it is cut again.
const PRUNE_AFTER: u32 = 256;

const PUT_NODE: &str = "INSERT INTO nodes (name, revision, body) VALUES ($1, $2, $3) \
                        ON CONFLICT (name) DO UPDATE SET revision = excluded.revision, body = excluded.body";
const PUT_RACK: &str = "INSERT INTO racks (name, revision, body) VALUES ($1, $2, $3) \
                        ON CONFLICT (name) DO UPDATE SET revision = excluded.revision, body = excluded.body";
const PUT_SET: &str = "INSERT INTO sets (name, revision, body) VALUES ($1, $2, $3) \
                       ON CONFLICT (name) DO UPDATE SET revision = excluded.revision, body = excluded.body";
const PUT_DEPLOYMENT: &str = "INSERT INTO deployments (id, revision, body) VALUES ($1, $2, $3) \
                              ON CONFLICT (id) DO UPDATE SET revision = excluded.revision, body = excluded.body";
const PUT_COURSE: &str = "INSERT INTO courses (deployment, revision, body) VALUES ($1, $2, $3) \
                          ON CONFLICT (deployment) DO UPDATE SET revision = excluded.revision, body = excluded.body";
const PUT_OUTCOME: &str = "INSERT INTO outcomes (deployment, node, revision, body) VALUES ($1, $2, $3, $4) \
                           ON CONFLICT (deployment, node) DO UPDATE SET revision = excluded.revision, body = excluded.body";
const PUT_RUN: &str = "INSERT INTO runs (deployment, node, revision, body) VALUES ($1, $2, $3, $4) \
                       ON CONFLICT (deployment, node) DO UPDATE SET revision = excluded.revision, body = excluded.body";

/// The database engines and what differs between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    fn of(url: &str) -> Option<Self> {
        match url.split_once(':')?.0 {
            "sqlite" => Some(Self::Sqlite),
            "postgres" | "postgresql" => Some(Self::Postgres),
            _ => None,
        }
    }

    /// A deferred SQLite transaction that begins to write answers SQLITE_BUSY
    /// at once, whatever the time-out; an immediate one waits its turn.
    fn begin_write(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Postgres => "BEGIN",
        }
    }

    /// Several SELECTs must see one state.
    fn begin_read(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN DEFERRED",
            Self::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        }
    }

    /// SQLite: the write-ahead log lets readers go on beside the writer.
    /// `synchronous = FULL` makes every commit survive a power failure; NORMAL
    /// could forget the last ones, and with them the token that a deployed
    /// system proves itself with, or a lease that a machine already uses.
    fn set_up(self) -> &'static str {
        match self {
            Self::Sqlite => {
                "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON"
            }
            Self::Postgres => "SET statement_timeout = '60s'",
        }
    }

    fn has_migrations(self) -> &'static str {
        match self {
            Self::Sqlite => "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = '_sqlx_migrations'",
            Self::Postgres => {
                "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = current_schema() AND table_name = '_sqlx_migrations'"
            }
        }
    }
}

/// A store in SQLite or PostgreSQL.
#[derive(Debug)]
pub struct SqlStore {
    pool: AnyPool,
    engine: Engine,
    /// The database as it is named in sentences, without secrets.
    place: String,
    /// Timeline lines of each node since its timeline was last cut.
    grown: Mutex<BTreeMap<NodeName, u32>>,
}

impl SqlStore {
    /// Opens or makes an SQLite database in a file.
    ///
    /// # Errors
    /// As [`SqlStore::open`].
    pub async fn open_file(path: &Path) -> Result<Self, Error> {
        // The path becomes part of a URL.
        let mut url = "sqlite://".to_owned();
        for byte in path.as_os_str().as_encoded_bytes() {
            if byte.is_ascii_alphanumeric() || b"/-_.".contains(byte) {
                url.push(char::from(*byte));
            } else {
                url.push('%');
                url.push_str(&HEXUPPER.encode(&[*byte]));
            }
        }
        Self::open_at(&format!("{url}?mode=rwc"), path.display().to_string()).await
    }

    /// Opens the database at `url`, `sqlite:` or `postgres:`, and brings its
    /// tables up to date.
    ///
    /// # Errors
    /// [`Error::NewerDatabase`], before anything is touched, and
    /// [`Error::Database`] when it cannot be reached or is none of ours.
    pub async fn open(url: &str, password_file: Option<&Path>) -> Result<Self, Error> {
        let Some(password_file) = password_file else {
            return Self::open_at(url, url.to_owned()).await;
        };
        let password = std::fs::read_to_string(password_file).map_err(|cause| Error::File {
            doing: "read the database's password from",
            path: password_file.to_owned(),
            cause,
        })?;
        let mut full: AnyConnectOptions = url.parse().map_err(|e| database(url, "understand the address")(e))?;
        full.database_url.set_password(Some(password.trim())).map_err(|()| {
            database(url, "put the password into the address")(sqlx::Error::InvalidArgument(url.into()))
        })?;
        Self::open_at(full.database_url.as_str(), url.to_owned()).await
    }

    async fn open_at(url: &str, place: String) -> Result<Self, Error> {
        sqlx::any::install_default_drivers();
        let Some(engine) = Engine::of(url) else {
            return Err(Error::DatabaseScheme { url: place });
        };
        let options: AnyConnectOptions = url.parse().map_err(database(&place, "understand the address"))?;
        let options = options.disable_statement_logging();
        bounded(&place, "open", LIMIT, refuse_newer(&options, engine, &place)).await?;
        let connections = AnyPoolOptions::new()
            .max_connections(4)
            .acquire_timeout(LIMIT)
            .after_connect(move |connection, _| {
                Box::pin(async move { connection.execute(engine.set_up()).await.map(drop) })
            })
            // SQLite ends a transaction by itself when the disk is full. sqlx
            // then takes the connection for one that is in a transaction for
            // ever, so it is not used again. The ping lets a rollback that is
            // still queued go first.
            .after_release(|connection, _| {
                Box::pin(async move { Ok(connection.ping().await.is_ok() && !connection.is_in_transaction()) })
            })
            .connect_with(options);
        let open = async { connections.await.map_err(database(&place, "open")) };
        let pool = bounded(&place, "open", LIMIT, open).await?;
        let migrate = async { MIGRATOR.run(&pool).await.map_err(|e| database(&place, "set up the tables")(e.into())) };
        bounded(&place, "set up the tables", LOAD_LIMIT, migrate).await?;
        Ok(Self { pool, engine, place, grown: Mutex::default() })
    }

    /// Checks the whole database; used after a crash and by tests.
    ///
    /// # Errors
    /// [`Error::Database`] with what the engine found.
    pub async fn check(&self) -> Result<(), Error> {
        if self.engine == Engine::Postgres {
            return Ok(());
        }
        let found: String = sqlx::query("PRAGMA integrity_check")
            .fetch_one(&self.pool)
            .await
            .and_then(|row| row.try_get(0))
            .map_err(database(&self.place, "check"))?;
        if found == "ok" { Ok(()) } else { Err(database(&self.place, "check")(sqlx::Error::Protocol(found))) }
    }

    async fn write(&self, doing: &'static str) -> Result<Transaction<'static, Any>, Error> {
        self.pool.begin_with(self.engine.begin_write()).await.map_err(database(&self.place, doing))
    }

    async fn read(&self, doing: &'static str) -> Result<Transaction<'static, Any>, Error> {
        self.pool.begin_with(self.engine.begin_read()).await.map_err(database(&self.place, doing))
    }

    async fn apply_now(&self, base: Revision, changes: &[Change]) -> Result<Revision, Error> {
        const DOING: &str = "store changes";
        let mut tx = self.write(DOING).await?;
        let next = base.next();
        let moved = sqlx::query("UPDATE revision SET value = $1 WHERE id = 1 AND value = $2")
            .bind(signed(next.0))
            .bind(signed(base.0))
            .execute(&mut *tx)
            .await
            .map_err(database(&self.place, DOING))?;
        if moved.rows_affected() == 0 {
            let present = self.revision(&mut tx).await?;
            return Err(Error::Conflict { base: base.0, present: present.0 });
        }
        for (line, change) in last_of_each(changes).into_iter().enumerate() {
            self.put(&mut tx, next, line as i64, change).await.map_err(database(&self.place, DOING))?;
        }
        for node in self.overgrown(changes) {
            prune(&mut tx, &node).await.map_err(database(&self.place, DOING))?;
        }
        tx.commit().await.map_err(database(&self.place, DOING))?;
        Ok(next)
    }

    async fn put(
        &self,
        tx: &mut Transaction<'static, Any>,
        revision: Revision,
        line: i64,
        change: &Change,
    ) -> Result<(), sqlx::Error> {
        let revision = signed(revision.0);
        match change {
            Change::PutNode(node) => {
                keep(tx, PUT_NODE, node.name.to_string(), revision, json(node)?).await?;
            }
            Change::DropNode(name) => {
                sqlx::query("DELETE FROM nodes WHERE name = $1").bind(name.to_string()).execute(&mut **tx).await?;
                sqlx::query("DELETE FROM timeline WHERE node = $1").bind(name.to_string()).execute(&mut **tx).await?;
                bury(tx, revision, "node", name.as_str()).await?;
            }
            Change::PutRack(rack) => {
                keep(tx, PUT_RACK, rack.name.to_string(), revision, json(rack)?).await?;
            }
            Change::DropRack(name) => {
                sqlx::query("DELETE FROM racks WHERE name = $1").bind(name.to_string()).execute(&mut **tx).await?;
                bury(tx, revision, "rack", name.as_str()).await?;
            }
            Change::PutSet(set) => {
                keep(tx, PUT_SET, set.name.to_string(), revision, json(set)?).await?;
            }
            Change::DropSet(name) => {
                sqlx::query("DELETE FROM sets WHERE name = $1").bind(name.to_string()).execute(&mut **tx).await?;
                bury(tx, revision, "set", name.as_str()).await?;
            }
            Change::PutDeployment(deployment) => {
                let id = signed(deployment.id.0);
                for statement in
                    ["DELETE FROM outcomes WHERE deployment = $1", "DELETE FROM courses WHERE deployment = $1"]
                {
                    sqlx::query(statement).bind(id).execute(&mut **tx).await?;
                }
                keep(tx, PUT_DEPLOYMENT, id, revision, json(deployment)?).await?;
            }
            Change::PutCourse(id, course) => {
                keep(tx, PUT_COURSE, signed(id.0), revision, json(course)?).await?;
            }
            Change::PutOutcome(id, node, outcome) => {
                keep_of_node(tx, PUT_OUTCOME, (*id, node), revision, json(outcome)?).await?;
            }
            Change::PutRun(run) => {
                keep_of_node(tx, PUT_RUN, (run.deployment, &run.node), revision, json(run)?).await?;
            }
            Change::Note(note) => {
                sqlx::query("INSERT INTO timeline (revision, line, node, body) VALUES ($1, $2, $3, $4)")
                    .bind(revision)
                    .bind(line)
                    .bind(note.node.to_string())
                    .bind(json(note)?)
                    .execute(&mut **tx)
                    .await?;
            }
            Change::PutImage(_) | Change::DropImage(_) | Change::PutLive(..) => {}
        }
        Ok(())
    }

    /// Nodes whose timelines have grown enough to be worth cutting.
    fn overgrown(&self, changes: &[Change]) -> Vec<NodeName> {
        let mut grown = self.grown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut due = Vec::new();
        for change in changes {
            let Change::Note(note) = change else { continue };
            let lines = grown.entry(note.node.clone()).or_default();
            *lines += 1;
            if *lines >= PRUNE_AFTER {
                grown.remove(&note.node);
                due.push(note.node.clone());
            }
        }
        due
    }

    async fn revision(&self, tx: &mut Transaction<'static, Any>) -> Result<Revision, Error> {
        let value: i64 = sqlx::query("SELECT value FROM revision WHERE id = 1")
            .fetch_one(&mut **tx)
            .await
            .and_then(|row| row.try_get(0))
            .map_err(database(&self.place, "read the revision"))?;
        Ok(Revision(value.unsigned_abs()))
    }

    /// All rows of a query with the revision as its only parameter.
    async fn bodies<T: DeserializeOwned>(
        &self,
        tx: &mut Transaction<'static, Any>,
        sql: &'static str,
        base: Revision,
    ) -> Result<Vec<T>, Error> {
        let rows = sqlx::query(sql)
            .bind(signed(base.0))
            .fetch_all(&mut **tx)
            .await
            .map_err(database(&self.place, "read the state"))?;
        rows.iter().map(|row| self.body(row)).collect()
    }

    fn body<T: DeserializeOwned>(&self, row: &sqlx::any::AnyRow) -> Result<T, Error> {
        let text: String = row.try_get(0).map_err(database(&self.place, "read the state"))?;
        serde_json::from_str(&text)
            .map_err(|e| database(&self.place, "understand a row of")(sqlx::Error::Decode(Box::new(e))))
    }

    async fn since_now(&self, base: Revision) -> Result<(Vec<Change>, Revision), Error> {
        let mut tx = self.read("read the state").await?;
        let revision = self.revision(&mut tx).await?;
        // What is gone comes first: a name or a MAC address may have a new owner.
        let mut changes = self.burials(&mut tx, base).await?;
        let racks: Vec<Rack> =
            self.bodies(&mut tx, "SELECT body FROM racks WHERE revision > $1 ORDER BY name", base).await?;
        changes.extend(racks.into_iter().map(Change::PutRack));
        let sets: Vec<MachineSet> =
            self.bodies(&mut tx, "SELECT body FROM sets WHERE revision > $1 ORDER BY name", base).await?;
        changes.extend(sets.into_iter().map(Change::PutSet));
        let deployments: Vec<Deployment> =
            self.bodies(&mut tx, "SELECT body FROM deployments WHERE revision > $1 ORDER BY id", base).await?;
        changes.extend(deployments.into_iter().map(Change::PutDeployment));
        changes.extend(self.outcomes(&mut tx, base).await?);
        let nodes: Vec<Node> =
            self.bodies(&mut tx, "SELECT body FROM nodes WHERE revision > $1 ORDER BY revision, name", base).await?;
        changes.extend(nodes.into_iter().map(|node| Change::PutNode(Box::new(node))));
        if base > Revision(0) {
            let notes: Vec<Note> = self
                .bodies(&mut tx, "SELECT body FROM timeline WHERE revision > $1 ORDER BY revision, line", base)
                .await?;
            changes.extend(notes.into_iter().map(Change::Note));
        }
        Ok((changes, revision))
    }

    /// What changed of deployments since their bodies were written.
    async fn outcomes(&self, tx: &mut Transaction<'static, Any>, base: Revision) -> Result<Vec<Change>, Error> {
        let broken = database(&self.place, "read the state");
        let rows =
            sqlx::query("SELECT body, deployment, node FROM outcomes WHERE revision > $1 ORDER BY deployment, node")
                .bind(signed(base.0))
                .fetch_all(&mut **tx)
                .await
                .map_err(&broken)?;
        let mut changes = Vec::with_capacity(rows.len());
        for row in &rows {
            let node: String = row.try_get(2).map_err(&broken)?;
            let node = node.parse().map_err(|e| broken(sqlx::Error::Decode(Box::new(e) as Box<fleet::ids::BadId>)))?;
            changes.push(Change::PutOutcome(self.deployment_id(row)?, node, self.body(row)?));
        }
        let rows = sqlx::query("SELECT body, deployment FROM courses WHERE revision > $1 ORDER BY deployment")
            .bind(signed(base.0))
            .fetch_all(&mut **tx)
            .await
            .map_err(&broken)?;
        for row in &rows {
            changes.push(Change::PutCourse(self.deployment_id(row)?, Box::new(self.body(row)?)));
        }
        Ok(changes)
    }

    fn deployment_id(&self, row: &sqlx::any::AnyRow) -> Result<DeploymentId, Error> {
        let id: i64 = row.try_get(1).map_err(database(&self.place, "read the state"))?;
        Ok(DeploymentId(id.unsigned_abs()))
    }

    async fn burials(&self, tx: &mut Transaction<'static, Any>, base: Revision) -> Result<Vec<Change>, Error> {
        let broken = database(&self.place, "read the state");
        let rows = sqlx::query("SELECT kind, name FROM gone WHERE revision > $1 ORDER BY revision, kind, name")
            .bind(signed(base.0))
            .fetch_all(&mut **tx)
            .await
            .map_err(&broken)?;
        let change = |row: &sqlx::any::AnyRow| {
            let (kind, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            let bad = |e: fleet::ids::BadId| sqlx::Error::Decode(Box::new(e));
            Ok(match kind.as_str() {
                "node" => Change::DropNode(name.parse().map_err(bad)?),
                "set" => Change::DropSet(name.parse().map_err(bad)?),
                "rack" => Change::DropRack(name.parse().map_err(bad)?),
                other => return Err(sqlx::Error::Protocol(format!("`{other}` is no kind of thing that can be gone"))),
            })
        };
        rows.iter().map(|row| change(row).map_err(&broken)).collect()
    }

    async fn timeline_now(&self, node: &NodeName) -> Result<Vec<Note>, Error> {
        let rows = sqlx::query("SELECT body FROM timeline WHERE node = $1 ORDER BY revision DESC, line DESC LIMIT $2")
            .bind(node.to_string())
            .bind(TIMELINE_LINES as i64)
            .fetch_all(&self.pool)
            .await
            .map_err(database(&self.place, "read a timeline"))?;
        rows.iter().rev().map(|row| self.body(row)).collect()
    }

    async fn runs_now(&self, deployment: DeploymentId) -> Result<Vec<Run>, Error> {
        let rows = sqlx::query("SELECT body FROM runs WHERE deployment = $1 ORDER BY node")
            .bind(signed(deployment.0))
            .fetch_all(&self.pool)
            .await
            .map_err(database(&self.place, "read what nodes did"))?;
        rows.iter().map(|row| self.body(row)).collect()
    }

    async fn save_leases_now(&self, leases: &[Lease]) -> Result<(), Error> {
        let broken = database(&self.place, "store leases");
        let mut tx = self.write("store leases").await?;
        for lease in leases {
            sqlx::query(
                "INSERT INTO leases (address, mac, expires) VALUES ($1, $2, $3) \
                 ON CONFLICT (address) DO UPDATE SET mac = excluded.mac, expires = excluded.expires",
            )
            .bind(lease.address.to_string())
            .bind(lease.mac.to_string())
            .bind(signed(lease.expires.0))
            .execute(&mut *tx)
            .await
            .map_err(&broken)?;
        }
        tx.commit().await.map_err(&broken)
    }

    async fn load_leases_now(&self) -> Result<Vec<Lease>, Error> {
        let broken = database(&self.place, "read the leases");
        let rows =
            sqlx::query("SELECT address, mac, expires FROM leases").fetch_all(&self.pool).await.map_err(&broken)?;
        let lease = |row: &sqlx::any::AnyRow| {
            let (address, mac, expires): (String, String, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            Ok(Lease {
                address: address.parse().map_err(|e| sqlx::Error::Decode(Box::new(e)))?,
                mac: mac.parse().map_err(|e: fleet::ids::BadId| sqlx::Error::Decode(Box::new(e)))?,
                expires: Millis(expires.unsigned_abs()),
            })
        };
        rows.iter().map(|row| lease(row).map_err(&broken)).collect()
    }
}

impl Store for SqlStore {
    fn load(&self) -> BoxFuture<'_, Result<(Snapshot, Revision), Error>> {
        Box::pin(bounded(&self.place, "read the state", LOAD_LIMIT, async {
            let (changes, revision) = self.since_now(Revision(0)).await?;
            let mut snapshot = Snapshot::default();
            changes.iter().for_each(|change| snapshot.apply(change));
            Ok((snapshot, revision))
        }))
    }

    fn apply<'a>(&'a self, base: Revision, changes: &'a [Change]) -> BoxFuture<'a, Result<Revision, Error>> {
        // A deployment to 100,000 nodes is one transaction of 200,000 rows.
        let limit = LIMIT + Duration::from_millis(changes.len() as u64);
        Box::pin(bounded(&self.place, "store changes", limit, self.apply_now(base, changes)))
    }

    fn since(&self, base: Revision) -> BoxFuture<'_, Result<(Vec<Change>, Revision), Error>> {
        Box::pin(bounded(&self.place, "read the state", LOAD_LIMIT, self.since_now(base)))
    }

    fn timeline<'a>(&'a self, node: &'a NodeName) -> BoxFuture<'a, Result<Vec<Note>, Error>> {
        Box::pin(bounded(&self.place, "read a timeline", LIMIT, self.timeline_now(node)))
    }

    fn runs(&self, deployment: DeploymentId) -> BoxFuture<'_, Result<Vec<Run>, Error>> {
        Box::pin(bounded(&self.place, "read what nodes did", LIMIT, self.runs_now(deployment)))
    }

    fn save_leases<'a>(&'a self, leases: &'a [Lease]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(bounded(&self.place, "store leases", LIMIT, self.save_leases_now(leases)))
    }

    fn load_leases(&self) -> BoxFuture<'_, Result<Vec<Lease>, Error>> {
        Box::pin(bounded(&self.place, "read the leases", LOAD_LIMIT, self.load_leases_now()))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            // Closing waits for connections that are in use.
            let _ = tokio::time::timeout(Duration::from_secs(2), self.pool.close()).await;
        })
    }
}

/// Looks at the database over a connection of its own, which sets nothing up.
async fn refuse_newer(options: &AnyConnectOptions, engine: Engine, place: &str) -> Result<(), Error> {
    let broken = database(place, "open");
    let known = MIGRATOR.iter().map(|m| m.version).max().unwrap_or(0);
    let mut connection = options.connect().await.map_err(&broken)?;
    let look = async {
        let tables: i64 = connection.fetch_one(engine.has_migrations()).await?.try_get(0)?;
        if tables == 0 {
            return Ok(None);
        }
        connection.fetch_one("SELECT MAX(version) FROM _sqlx_migrations").await?.try_get::<Option<i64>, _>(0)
    };
    let found = look.await.map_err(&broken)?;
    // A connection that does not say goodbye is as closed.
    let _ = connection.close().await;
    match found {
        Some(found) if found > known => Err(Error::NewerDatabase { place: place.to_owned(), found, known }),
        _ => Ok(()),
    }
}

/// What is stored, without what the same transaction replaces: a node that tells three things in a batch is written once,
/// with the last of them.
#[must_use]
pub fn last_of_each(changes: &[Change]) -> Vec<&Change> {
    let mut replaced = BTreeSet::new();
    let mut last: Vec<&Change> = Vec::new();
    for change in changes.iter().rev().filter(|change| change.is_stored()) {
        let key = match change {
            Change::PutNode(node) => Some(("node", node.name.to_string())),
            Change::PutDeployment(deployment) => Some(("deployment", deployment.id.to_string())),
            Change::PutCourse(id, _) => Some(("course", id.to_string())),
            Change::PutOutcome(id, node, _) => Some(("outcome", format!("{id} {node}"))),
            Change::PutRun(run) => Some(("run", format!("{} {}", run.deployment, run.node))),
            // Everything else is rare, or each of it counts.
            _ => None,
        };
        if key.is_none_or(|key| replaced.insert(key)) {
            last.push(change);
        }
    }
    last.reverse();
    last
}

/// A body under its key, in the table that the statement names.
async fn keep<K>(
    tx: &mut Transaction<'static, Any>,
    statement: &'static str,
    key: K,
    revision: i64,
    body: String,
) -> Result<(), sqlx::Error>
where
    K: sqlx::Encode<'static, Any> + sqlx::Type<Any> + 'static,
{
    sqlx::query(statement).bind(key).bind(revision).bind(body).execute(&mut **tx).await.map(drop)
}

/// The same for what belongs to one node of a deployment.
async fn keep_of_node(
    tx: &mut Transaction<'static, Any>,
    statement: &'static str,
    (deployment, node): (DeploymentId, &NodeName),
    revision: i64,
    body: String,
) -> Result<(), sqlx::Error> {
    let query = sqlx::query(statement).bind(signed(deployment.0)).bind(node.to_string()).bind(revision).bind(body);
    query.execute(&mut **tx).await.map(drop)
}

async fn bury(
    tx: &mut Transaction<'static, Any>,
    revision: i64,
    kind: &'static str,
    name: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO gone (kind, name, revision) VALUES ($1, $2, $3) \
         ON CONFLICT (kind, name) DO UPDATE SET revision = excluded.revision",
    )
    .bind(kind)
    .bind(name.to_owned())
    .bind(revision)
    .execute(&mut **tx)
    .await
    .map(drop)
}

async fn prune(tx: &mut Transaction<'static, Any>, node: &NodeName) -> Result<(), sqlx::Error> {
    sqlx::query(
        "DELETE FROM timeline WHERE node = $1 AND revision < (SELECT MIN(kept.revision) FROM \
         (SELECT revision FROM timeline WHERE node = $1 ORDER BY revision DESC, line DESC LIMIT $2) AS kept)",
    )
    .bind(node.to_string())
    .bind(TIMELINE_LINES as i64)
    .execute(&mut **tx)
    .await
    .map(drop)
}

fn json<T: Serialize>(value: &T) -> Result<String, sqlx::Error> {
    serde_json::to_string(value).map_err(|e| sqlx::Error::Encode(Box::new(e)))
}

/// Numbers of ours are counts and moments; both stay far below 2^63.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn database(place: &str, doing: &'static str) -> impl Fn(sqlx::Error) -> Error {
    let place = place.to_owned();
    move |cause| {
        let mut cause = cause.to_string();
        if cause.contains("disk is full") || cause.contains("No space left") {
            cause.push_str("; make room on that disk, then try again");
        }
        Error::Database { place: place.clone(), doing, cause }
    }
}

async fn bounded<T>(
    place: &str,
    doing: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let late = |_| Error::Database {
        place: place.to_owned(),
        doing,
        cause: format!("no answer within {} s", limit.as_secs()),
    };
    tokio::time::timeout(limit, work).await.unwrap_or_else(|e| Err(late(e)))
}
