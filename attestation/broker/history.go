// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coco-shim/coco/attestation/broker/references"
)

const (
	// maxSeen is how many attestations are remembered, maxAsked how many resources of each.
	maxSeen  = 1000
	maxAsked = 32
)

// seen is an attestation that the broker has judged. They are kept in memory, for questions about them.
type seen struct {
	Number   uint64         `json:"number"`
	Time     time.Time      `json:"time"`
	TEE      string         `json:"tee"`
	Address  string         `json:"address"`
	Status   string         `json:"status"`
	Code     string         `json:"code,omitempty"`
	Reason   string         `json:"reason,omitempty"`
	InitData string         `json:"init_data,omitempty"`
	Vector   map[string]int `json:"vector,omitempty"`
	// Asked are the resources that were asked for, with the answer of the policy.
	Asked map[string]bool `json:"asked,omitempty"`

	claims []byte // of the token, as JSON
}

// history are the last attestations. The zero value is empty.
type history struct {
	mu   sync.Mutex
	last []*seen // oldest first
	next uint64
}

// add remembers an attestation, and returns its number.
func (h *history) add(e seen) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next++
	e.Number = h.next
	if len(h.last) == maxSeen {
		copy(h.last, h.last[1:])
		h.last = h.last[:maxSeen-1]
	}
	h.last = append(h.last, &e)
	return e.Number
}

// asked remembers that a token was used for a resource.
func (h *history) asked(claims map[string]any, resource string, allowed bool) {
	n, ok := claims["coco.attestation"].(float64)
	if !ok {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	byNumber := func(e *seen, n uint64) int { return cmp.Compare(e.Number, n) }
	at, found := slices.BinarySearchFunc(h.last, uint64(n), byNumber)
	if !found {
		return // a token of before the restart, or of long ago
	}
	e := h.last[at]
	if e.Asked == nil {
		e.Asked = map[string]bool{}
	}
	if _, ok := e.Asked[resource]; ok || len(e.Asked) < maxAsked {
		e.Asked[resource] = allowed
	}
}

// all returns copies, newest first.
func (h *history) all() []seen {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]seen, 0, len(h.last))
	for _, e := range slices.Backward(h.last) {
		c := *e
		c.Asked = maps.Clone(e.Asked)
		out = append(out, c)
	}
	return out
}

// Change is what a candidate would change for one attestation.
type change struct {
	Number   uint64    `json:"number"`
	Time     time.Time `json:"time"`
	TEE      string    `json:"tee"`
	InitData string    `json:"init_data,omitempty"`
	Before   string    `json:"before"`
	After    string    `json:"after"`
	// Because names what keeps the evidence from being affirming afterwards.
	Because string `json:"because,omitempty"`
	// Gains and Loses are the resources, of those that were asked for.
	Gains []string `json:"gains,omitempty"`
	Loses []string `json:"loses,omitempty"`
}

// answer is what what-if answers.
type answer struct {
	Looked  int      `json:"looked_at"`
	Gaining int      `json:"gaining"`
	Losing  int      `json:"losing"`
	Changes []change `json:"changes"`
}

// whatIf judges the last attestations by other rules. Only evidence that was verified is looked at.
func (b *Broker) whatIf(ctx context.Context, candidate rules) (answer, error) {
	out := answer{Changes: []change{}}
	now := b.current()
	for _, e := range b.history.all() {
		if e.claims == nil {
			continue
		}
		out.Looked++
		before, _, err := b.judgeAgain(ctx, now, e)
		if err != nil {
			return out, err
		}
		after, because, err := b.judgeAgain(ctx, candidate, e)
		if err != nil {
			return out, err
		}
		c := change{
			Number: e.Number, Time: e.Time, TEE: e.TEE, InitData: e.InitData, Before: before.status, After: after.status,
			Because: because,
		}
		for _, r := range slices.Sorted(maps.Keys(e.Asked)) {
			switch {
			case after.allowed[r] && !before.allowed[r]:
				c.Gains = append(c.Gains, r)
			case !after.allowed[r] && before.allowed[r]:
				c.Loses = append(c.Loses, r)
			}
		}
		if c.Before == c.After && len(c.Gains)+len(c.Loses) == 0 {
			continue
		}
		if len(c.Gains) > 0 || c.After == "affirming" && c.Before != c.After {
			out.Gaining++
		}
		if len(c.Loses) > 0 || c.Before == "affirming" && c.Before != c.After {
			out.Losing++
		}
		out.Changes = append(out.Changes, c)
	}
	return out, nil
}

// judged is the verdict of rules on an attestation.
type judged struct {
	status  string
	allowed map[string]bool
}

func (b *Broker) judgeAgain(ctx context.Context, r rules, e seen) (judged, string, error) {
	out := judged{allowed: map[string]bool{}}
	var old map[string]any
	if err := json.Unmarshal(e.claims, &old); err != nil {
		return out, "", err
	}
	parts, _ := old["submods"].(map[string]any)
	part, _ := parts[submodCPU].(map[string]any)
	input, _ := part[annotated].(map[string]any)
	claims, a, err := b.appraise(ctx, r, e.TEE, input)
	if err != nil { // the policy has no opinion: there would be no token
		out.status = "refused"
		return out, err.Error(), nil
	}
	out.status = statusIn(claims)
	text, err := json.Marshal(claims) // policies see what a token's reader would see
	if err != nil {
		return out, "", err
	}
	if err := json.Unmarshal(text, &claims); err != nil {
		return out, "", err
	}
	for name := range e.Asked {
		plugin, path, _ := strings.Cut(name, "/")
		ok, err := b.allowed(ctx, r, claims, plugin, path, nil)
		out.allowed[name] = ok && err == nil
	}
	because := ""
	if out.status != "affirming" {
		because = b.explain(r, a, input)
	}
	return out, because, nil
}

// withSet returns rules with a set in place; an expired one, or one without values, is as good as removed.
func (r rules) withSet(s references.Set) rules {
	sets := maps.Clone(r.references)
	sets[s.Name] = s
	r.references = sets
	return r
}
