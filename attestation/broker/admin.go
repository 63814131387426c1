// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/broker/references"
	"github.com/coco-shim/coco/attestation/broker/store"
	"github.com/coco-shim/coco/attestation/kbs"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/policy/rego"
)

// adminRoutes are the routes of administrators: those of Trustee, and below /admin ours.
func (b *Broker) adminRoutes() map[string]http.HandlerFunc {
	p := kbs.Prefix
	return map[string]http.HandlerFunc{
		"POST " + p + "/resource/{path...}":       b.putResource,
		"DELETE " + p + "/resource/{path...}":     b.removeResource,
		"POST " + p + "/attestation-policy":       b.setPolicy(rego.Attestation),
		"GET " + p + "/attestation-policy":        b.getPolicy(rego.Attestation),
		"GET " + p + "/attestation-policy/{id}":   b.getPolicy(rego.Attestation),
		"POST " + p + "/resource-policy":          b.setPolicy(rego.Resource),
		"GET " + p + "/resource-policy":           b.getPolicy(rego.Resource),
		"POST " + p + "/reference-value":          b.addReference,
		"GET " + p + "/reference-value/{name...}": b.getReference,
		"GET " + p + "/admin/resources":           b.listResources,
		"GET " + p + "/admin/references":          b.listReferences,
		"DELETE " + p + "/admin/references/{set}": b.removeReferences,
		"GET " + p + "/admin/attestations":        b.listAttestations,
		"GET " + p + "/admin/backup":              b.backup,
		"POST " + p + "/admin/check":              b.check,
		"POST " + p + "/admin/what-if":            b.askWhatIf,
	}
}

// putResource stores a resource. The header If-Match with a version in quotes refuses to replace another one; "0" only
// makes new ones.
func (b *Broker) putResource(w http.ResponseWriter, r *http.Request) {
	path, err := kbs.ParsePath(r.PathValue("path"))
	if err != nil {
		refuse(w, http.StatusNotFound, kbs.InvalidRequestPath, err.Error())
		return
	}
	value, ok := body(w, r)
	if !ok {
		return
	}
	defer clear(value)
	if len(value) == 0 {
		refuse(w, http.StatusBadRequest, kbs.HTTPFailed, "an empty resource: guests take none")
		return
	}
	want := -1
	if match := r.Header.Get("If-Match"); match != "" {
		if want, err = strconv.Atoi(strings.Trim(match, `"`)); err != nil || want < 0 {
			refuse(w, http.StatusBadRequest, kbs.HTTPFailed, "If-Match is no version")
			return
		}
	}
	n, err := b.cfg.Store.Put(bucketResource, path, value, want)
	switch {
	case errors.Is(err, store.ErrConflict):
		refuse(w, http.StatusConflict, kbs.PluginInternal, err.Error())
	case err != nil:
		refuse(w, http.StatusInternalServerError, kbs.PluginInternal, err.Error())
	default:
		w.Header().Set("ETag", `"`+strconv.Itoa(n)+`"`)
	}
}

func (b *Broker) removeResource(w http.ResponseWriter, r *http.Request) {
	err := b.cfg.Store.Delete(bucketResource, r.PathValue("path"))
	switch {
	case errors.Is(err, store.ErrNotFound):
		refuse(w, http.StatusNotFound, kbs.PluginInternal, err.Error())
	case err != nil:
		refuse(w, http.StatusInternalServerError, kbs.PluginInternal, err.Error())
	}
}

// policyMessage is Trustee's. Policy is base64url, as its clients send it with or without padding.
type policyMessage struct {
	Type     string `json:"type,omitempty"`
	PolicyID string `json:"policy_id,omitempty"`
	Policy   string `json:"policy"`
}

// decodePolicy reads the text of a policy.
func decodePolicy(text string) (string, error) {
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
	return string(b), err
}

// setPolicy compiles a policy, stores it and answers with what Lint finds.
func (b *Broker) setPolicy(kind rego.Kind) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		text, ok := body(w, r)
		if !ok {
			return
		}
		var m policyMessage
		if err := json.Unmarshal(text, &m); err != nil {
			refuse(w, http.StatusBadRequest, kbs.SerdeError, err.Error())
			return
		}
		if m.Type != "" && m.Type != "rego" || !slices.Contains([]string{"", "default", "default_cpu"}, m.PolicyID) {
			refuse(w, http.StatusBadRequest, kbs.ParsePolicyError,
				"this broker has one attestation policy in Rego: policy_id default_cpu")
			return
		}
		source, err := decodePolicy(m.Policy)
		if err != nil {
			refuse(w, http.StatusBadRequest, kbs.ParsePolicyError, "policy is not base64url: "+err.Error())
			return
		}
		p, err := rego.Compile(r.Context(), kind, source)
		if err != nil {
			refuse(w, http.StatusBadRequest, kbs.ParsePolicyError, err.Error())
			return
		}
		found, err := rego.Lint(kind, source, b.reference(b.current().references))
		if err != nil {
			refuse(w, http.StatusBadRequest, kbs.ParsePolicyError, err.Error())
			return
		}
		b.writes.Lock()
		defer b.writes.Unlock()
		if _, err := b.cfg.Store.Put(bucketPolicy, string(kind), []byte(source), -1); err != nil {
			refuse(w, http.StatusInternalServerError, kbs.PolicyEngineError, err.Error())
			return
		}
		b.change(func(r *rules) { r.set(kind, p, source) })
		if len(found) > 0 {
			reply(w, map[string]any{"warnings": found})
		}
	}
}

func (b *Broker) getPolicy(kind rego.Kind) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		rules := b.current()
		text := rules.resourceText
		if kind == rego.Attestation {
			text = rules.attestationText
		}
		reply(w, policyMessage{"rego", "default_cpu", base64.RawURLEncoding.EncodeToString([]byte(text))})
	}
}

// addReference registers reference values. A message without a set puts its values over those of the default set, as
// Trustee does; one with a set replaces that set.
func (b *Broker) addReference(w http.ResponseWriter, r *http.Request) {
	text, ok := body(w, r)
	if !ok {
		return
	}
	s, err := references.Parse(unwrap(text), b.cfg.Now())
	if err != nil {
		refuse(w, http.StatusBadRequest, kbs.ReferenceError, err.Error())
		return
	}
	b.writes.Lock()
	defer b.writes.Unlock()
	if s.Name == references.Default {
		s = b.current().references[s.Name].Merge(s)
	}
	value, err := json.Marshal(s)
	if err == nil {
		_, err = b.cfg.Store.Put(bucketReference, s.Name, value, -1)
	}
	if err != nil {
		refuse(w, http.StatusInternalServerError, kbs.ReferenceError, err.Error())
		return
	}
	b.change(func(r *rules) { *r = r.withSet(s) })
}

// removeReferences removes a set.
func (b *Broker) removeReferences(w http.ResponseWriter, r *http.Request) {
	b.writes.Lock()
	defer b.writes.Unlock()
	name := r.PathValue("set")
	err := b.cfg.Store.Delete(bucketReference, name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		refuse(w, http.StatusNotFound, kbs.ReferenceError, err.Error())
		return
	case err != nil:
		refuse(w, http.StatusInternalServerError, kbs.ReferenceError, err.Error())
		return
	}
	b.change(func(r *rules) {
		r.references = maps.Clone(r.references)
		delete(r.references, name)
	})
}

// unwrap returns a message that some clients send as a JSON string, or in a member of that name.
func unwrap(text []byte) []byte {
	var s string
	var m struct {
		Message string `json:"message"`
	}
	switch {
	case json.Unmarshal(text, &s) == nil:
		return []byte(s)
	case json.Unmarshal(text, &m) == nil && m.Message != "":
		return []byte(m.Message)
	}
	return text
}

func (b *Broker) getReference(w http.ResponseWriter, r *http.Request) {
	v, ok := b.current().references.Get(r.PathValue("name"), b.cfg.Now())
	if !ok {
		refuse(w, http.StatusNotFound, kbs.ReferenceError, "there is no such reference value")
		return
	}
	reply(w, v)
}

func (b *Broker) listResources(w http.ResponseWriter, _ *http.Request) {
	reply(w, append([]store.Entry{}, b.cfg.Store.List(bucketResource)...))
}

func (b *Broker) listReferences(w http.ResponseWriter, _ *http.Request) {
	sets := b.current().references
	out := []references.Set{}
	for _, name := range slices.Sorted(maps.Keys(sets)) {
		out = append(out, sets[name])
	}
	reply(w, out)
}

func (b *Broker) listAttestations(w http.ResponseWriter, _ *http.Request) { reply(w, b.history.all()) }

// backup sends the store's file, which needs the store's key.
func (b *Broker) backup(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := b.cfg.Store.Backup(w); err != nil {
		b.cfg.Log.Error("backup", "error", err)
		panic(http.ErrAbortHandler) // the client must not take a part for the whole
	}
}

// checkRequest is evidence in a file. Freshness is not checked, since no session belongs to it.
type checkRequest struct {
	TEE      string          `json:"tee"`
	Evidence json.RawMessage `json:"evidence"`
	InitData string          `json:"init_data"`
}

// check says what the broker would say of evidence, and gives no token.
func (b *Broker) check(w http.ResponseWriter, r *http.Request) {
	text, ok := body(w, r)
	if !ok {
		return
	}
	var q checkRequest
	if err := json.Unmarshal(text, &q); err != nil {
		refuse(w, http.StatusBadRequest, kbs.SerdeError, err.Error())
		return
	}
	var doc *initdata.Document
	var bound []byte
	if q.InitData != "" {
		var err error
		if doc, err = initdata.FromText([]byte(q.InitData)); err != nil {
			refuse(w, http.StatusBadRequest, kbs.SerdeError, err.Error())
			return
		}
		bound = doc.Digest()
	}
	claims, err := b.cfg.Evidence.Verify(r.Context(), q.TEE, q.Evidence, nil, bound)
	if err != nil {
		out := map[string]any{"status": "refused", "reason": err.Error()}
		if f, ok := attestation.FailureOf(err); ok {
			out["failure"] = f.Check
		}
		reply(w, out)
		return
	}
	rules := b.current()
	input := inputOf(q.TEE, claims, doc)
	token, a, err := b.appraise(r.Context(), rules, q.TEE, input)
	if err != nil {
		reply(w, map[string]any{"status": "refused", "reason": "attestation policy: " + err.Error()})
		return
	}
	reply(w, map[string]any{
		"status": statusIn(token), "vector": a.Vector, "reason": b.explain(rules, a, input), "claims": input,
	})
}

// whatIfRequest is a candidate: a policy, a message with reference values, or a set that is removed.
type whatIfRequest struct {
	AttestationPolicy string          `json:"attestation_policy"`
	ResourcePolicy    string          `json:"resource_policy"`
	Reference         json.RawMessage `json:"reference"`
	WithoutSet        string          `json:"without_set"`
}

// askWhatIf judges the last attestations as if the candidate were in force.
func (b *Broker) askWhatIf(w http.ResponseWriter, r *http.Request) {
	text, ok := body(w, r)
	if !ok {
		return
	}
	var q whatIfRequest
	if err := json.Unmarshal(text, &q); err != nil {
		refuse(w, http.StatusBadRequest, kbs.SerdeError, err.Error())
		return
	}
	candidate := b.current()
	for kind, source := range map[rego.Kind]string{
		rego.Attestation: q.AttestationPolicy, rego.Resource: q.ResourcePolicy,
	} {
		if source == "" {
			continue
		}
		p, err := rego.Compile(r.Context(), kind, source)
		if err != nil {
			refuse(w, http.StatusBadRequest, kbs.ParsePolicyError, err.Error())
			return
		}
		candidate.set(kind, p, source)
	}
	if len(q.Reference) > 0 {
		s, err := references.Parse(q.Reference, b.cfg.Now())
		if err != nil {
			refuse(w, http.StatusBadRequest, kbs.ReferenceError, err.Error())
			return
		}
		if s.Name == references.Default {
			s = candidate.references[s.Name].Merge(s)
		}
		candidate = candidate.withSet(s)
	}
	if q.WithoutSet != "" {
		if _, ok := candidate.references[q.WithoutSet]; !ok {
			refuse(w, http.StatusNotFound, kbs.ReferenceError, "there is no such set")
			return
		}
		candidate = candidate.withSet(references.Set{Name: q.WithoutSet, Expires: time.Time{}})
	}
	out, err := b.whatIf(r.Context(), candidate)
	if err != nil {
		refuse(w, http.StatusInternalServerError, kbs.PolicyEngineError, err.Error())
		return
	}
	reply(w, out)
}
