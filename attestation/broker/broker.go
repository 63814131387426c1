// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package broker is a key broker: it gives secrets to guests that prove what they are. It speaks the protocol of CoCo's
// KBS (package kbs), so that Trustee's clients work with it too.
//
// A guest opens a session, sends evidence, and gets a token. In between, package evidence verifies the evidence, and
// the attestation policy compares the claims with reference values; the result is the token's trust vector. With the
// token the guest asks for resources. The resource policy decides before the store is looked at, so that a resource
// that is denied and one that is absent look alike. A released resource is encrypted to the key that the evidence
// names.
//
// Administrators have tokens with a role. There is no default that lets anyone in.
//
// Store and audit log belong to the caller, who closes them after the server has ended.
package broker

import (
	"context"
	_ "embed" // the default policies
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/coco-shim/coco/attestation/broker/audit"
	"github.com/coco-shim/coco/attestation/broker/evidence"
	"github.com/coco-shim/coco/attestation/broker/references"
	"github.com/coco-shim/coco/attestation/broker/session"
	"github.com/coco-shim/coco/attestation/broker/store"
	"github.com/coco-shim/coco/attestation/broker/throttle"
	"github.com/coco-shim/coco/attestation/broker/token"
	"github.com/coco-shim/coco/policy/rego"
)

//go:embed attestation.rego
var defaultAttestation string

//go:embed resource.rego
var defaultResource string

// Buckets of the store.
const (
	bucketResource  = "resource"
	bucketPolicy    = "policy"
	bucketReference = "reference"
	bucketKey       = "token-key"
	bucketAdminKey  = "admin-key"
	bucketAudit     = "audit"
)

const (
	tokenLife  = 5 * time.Minute
	adminLife  = 365 * 24 * time.Hour
	rotateAt   = 30 * 24 * time.Hour
	publishFor = 24 * time.Hour

	adminIssuer   = "coco-kbs-admin"
	adminAudience = "coco-kbs"
)

// Config is what a broker works with.
type Config struct {
	Store    *store.Store
	Audit    *audit.Log
	Evidence *evidence.Verifiers
	// Issuer is the issuer of tokens, and where OIDC discovery is: the broker's URL.
	Issuer string
	// Admins are issuers of administrators' tokens beside the broker itself, Roles what each role may do.
	Admins []token.Issuer
	Roles  []Role
	// RevokeAdmins makes all tokens of administrators invalid that the broker has given so far.
	RevokeAdmins bool
	// Session is how long a guest has for its evidence. Zero means 5 minutes.
	Session time.Duration
	// MaxSessions bounds the sessions that are open. Zero means 20000.
	MaxSessions int
	Log         *slog.Logger
	Now         func() time.Time
}

// Broker answers requests. Its methods may be called by several goroutines.
type Broker struct {
	cfg      Config
	signer   *token.Signer
	admin    *token.Signer
	access   access
	sessions *session.Sessions
	history  *history
	counters counters
	slots    chan struct{} // one for each attestation that is being verified

	strangers throttle.Bucket // of audit entries about requests that prove nothing

	writes sync.Mutex // held by who changes policies or reference values, so that store and rules agree

	mu    sync.RWMutex
	rules rules // guarded by mu; its maps are never changed
}

// rules are what decides.
type rules struct {
	attestation, resource         *rego.Policy
	attestationText, resourceText string
	references                    references.Sets
}

// New opens a broker on its store. It makes keys that are missing.
func New(ctx context.Context, cfg Config) (*Broker, error) {
	b := &Broker{
		strangers: throttle.Bucket{Burst: strangersBurst, Pause: time.Second},
		cfg:       cfg, history: &history{}, slots: make(chan struct{}, maxVerifying),
		signer: &token.Signer{Issuer: cfg.Issuer, Lead: publishFor, Now: cfg.Now},
		admin:  &token.Signer{Issuer: adminIssuer, Now: cfg.Now},
	}
	// Numbers of attestations go on where an earlier start cannot have been: tokens name them.
	b.history.next = cfg.Audit.Head().Number
	b.sessions = session.New(cfg.Session, cfg.MaxSessions, cfg.Now)
	var err error
	if b.access, err = newAccess(b.admin, cfg); err != nil {
		return nil, err
	}
	if cfg.RevokeAdmins {
		if err := b.dropKeys(bucketAdminKey); err != nil {
			return nil, err
		}
	}
	for bucket, s := range map[string]*token.Signer{bucketKey: b.signer, bucketAdminKey: b.admin} {
		if err := b.loadKeys(bucket, s); err != nil {
			return nil, err
		}
	}
	if b.rules.references, err = b.loadReferences(); err != nil {
		return nil, err
	}
	if err := b.loadPolicies(ctx); err != nil {
		return nil, err
	}
	return b, b.checkAudit()
}

// dropKeys forgets the keys of a signer, so that nothing that they have signed is valid.
func (b *Broker) dropKeys(bucket string) error {
	for _, e := range b.cfg.Store.List(bucket) {
		if err := b.cfg.Store.Delete(bucket, e.Key); err != nil {
			return err
		}
	}
	return b.cfg.Audit.Write("admin", "ok", map[string]string{"endpoint": "revoke tokens"})
}

// loadKeys reads the keys of a signer, and makes the first one.
func (b *Broker) loadKeys(bucket string, s *token.Signer) error {
	var keys []*token.Key
	for _, e := range b.cfg.Store.List(bucket) {
		der, _, err := b.cfg.Store.Get(bucket, e.Key)
		if err != nil {
			return err
		}
		made, err := strconv.ParseInt(e.Key, 10, 64)
		if err != nil {
			return fmt.Errorf("key %q in the store: %w", e.Key, err)
		}
		k, err := token.ParseKey(der, time.Unix(made, 0))
		if err != nil {
			return fmt.Errorf("key %q in the store: %w", e.Key, err)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		k, err := b.newKey(bucket)
		if err != nil {
			return err
		}
		keys = append(keys, k)
	}
	s.SetKeys(keys)
	return nil
}

func (b *Broker) newKey(bucket string) (*token.Key, error) {
	now := b.cfg.Now().Truncate(time.Second)
	k, err := token.NewKey(now)
	if err != nil {
		return nil, err
	}
	der, err := k.Marshal()
	if err != nil {
		return nil, err
	}
	_, err = b.cfg.Store.Put(bucket, strconv.FormatInt(now.Unix(), 10), der, -1)
	return k, err
}

// Rotate makes a new signing key if the newest one is old enough, and removes keys whose tokens have all expired. The
// caller calls it now and then.
func (b *Broker) Rotate() error {
	now := b.cfg.Now()
	if now.Sub(b.signer.Newest()) < rotateAt {
		return nil
	}
	if _, err := b.newKey(bucketKey); err != nil {
		return err
	}
	for _, e := range b.cfg.Store.List(bucketKey) {
		made, err := strconv.ParseInt(e.Key, 10, 64)
		if err == nil && now.Sub(time.Unix(made, 0)) > 2*rotateAt {
			if err := b.cfg.Store.Delete(bucketKey, e.Key); err != nil {
				return err
			}
		}
	}
	return b.loadKeys(bucketKey, b.signer)
}

// AdminToken makes a token with a role of the broker's own.
func (b *Broker) AdminToken(role string) (string, error) {
	if !b.access.has(role) {
		return "", fmt.Errorf("there is no role %q", role)
	}
	b.record("admin", "ok", map[string]string{"endpoint": "new token", "role": role})
	return b.admin.Sign(map[string]any{"aud": adminAudience, "role": role, "sub": role}, adminLife)
}

func (b *Broker) loadReferences() (references.Sets, error) {
	sets := references.Sets{}
	for _, e := range b.cfg.Store.List(bucketReference) {
		text, _, err := b.cfg.Store.Get(bucketReference, e.Key)
		if err != nil {
			return nil, err
		}
		var s references.Set
		if err := json.Unmarshal(text, &s); err != nil {
			return nil, fmt.Errorf("reference values %q in the store: %w", e.Key, err)
		}
		sets[s.Name] = s
	}
	return sets, nil
}

// loadPolicies compiles the policies of the store, or the default ones.
func (b *Broker) loadPolicies(ctx context.Context) error {
	for kind, text := range map[rego.Kind]string{
		rego.Attestation: defaultAttestation, rego.Resource: defaultResource,
	} {
		stored, _, err := b.cfg.Store.Get(bucketPolicy, string(kind))
		if err == nil {
			text = string(stored)
		} else if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		p, err := rego.Compile(ctx, kind, text)
		if err != nil {
			return fmt.Errorf("%s policy in the store: %w", kind, err)
		}
		b.rules.set(kind, p, text)
	}
	return nil
}

func (r *rules) set(kind rego.Kind, p *rego.Policy, text string) {
	if kind == rego.Attestation {
		r.attestation, r.attestationText = p, text
		return
	}
	r.resource, r.resourceText = p, text
}

// current returns the rules as they are now.
func (b *Broker) current() rules {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.rules
}

// change replaces the rules.
func (b *Broker) change(edit func(*rules)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	edit(&b.rules)
}

// reference returns the reference values of rules.
func (b *Broker) reference(sets references.Sets) rego.References {
	now := b.cfg.Now()
	return func(name string) (any, bool) { return sets.Get(name, now) }
}

// record writes an audit entry. An entry that cannot be written ends up in the log: requests are answered all the same,
// except for those of administrators.
func (b *Broker) record(event, result string, fields map[string]string) {
	if err := b.cfg.Audit.Write(event, result, fields); err != nil {
		b.counters.add("audit_errors", "")
		b.cfg.Log.Error("audit entry is lost", "event", event, "error", err)
	}
}

// strangersBurst bounds audit entries at once about refused requests for which nobody has proven anything. Operators
// see attacks by them, and an attacker must not fill the disk.
const strangersBurst = 200

// recordRefusal writes an audit entry about a stranger's request, unless there were too many. The next counts those.
func (b *Broker) recordRefusal(event, result string, fields map[string]string) {
	ok, quiet := b.strangers.Take(b.cfg.Now())
	if !ok {
		b.counters.add("audit_left_out", event)
		return
	}
	if quiet > 0 {
		fields["left_out"] = strconv.FormatUint(quiet, 10)
	}
	b.record(event, result, fields)
}

// anchor keeps the end of the audit log in the store, so that lines which are cut off later are missed.
func (b *Broker) anchor() error {
	if err := b.cfg.Audit.Sync(); err != nil {
		return err
	}
	text, err := json.Marshal(b.cfg.Audit.Head())
	if err != nil {
		return err
	}
	_, err = b.cfg.Store.Put(bucketAudit, "head", text, -1)
	return err
}

// Anchor returns the end of the audit log that a store remembers; false if there is none.
func Anchor(s *store.Store) (audit.Head, bool, error) {
	var h audit.Head
	text, _, err := s.Get(bucketAudit, "head")
	if errors.Is(err, store.ErrNotFound) {
		return h, false, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &h)
	}
	return h, err == nil, err
}

// checkAudit refuses an audit log that is shorter than the store remembers.
func (b *Broker) checkAudit() error {
	h, ok, err := Anchor(b.cfg.Store)
	if err == nil && ok && b.cfg.Audit.Head().Number < h.Number {
		err = fmt.Errorf("the audit log has %d entries, and %d were written: lines were cut off",
			b.cfg.Audit.Head().Number, h.Number)
	}
	return err
}

// Close remembers the end of the audit log.
func (b *Broker) Close() error { return b.anchor() }

// Handler returns the routes.
func (b *Broker) Handler() http.Handler { return b.routes() }
