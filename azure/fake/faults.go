// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Kind is a kind of fault.
type Kind string

// Faults of the connection, which every service can have.
const (
	Delay    Kind = "delay" // for Fault.Delay
	Reset    Kind = "reset"
	Status   Kind = "status"   // answers Fault.Status, with Retry-After
	TooLong  Kind = "too-long" // answers more than a client reads
	Redirect Kind = "redirect" // to another host
)

// Lies of the attestation service, in its tokens.
const (
	Expired       Kind = "expired"
	Early         Kind = "not-yet-valid"
	ForeignIssuer Kind = "foreign-issuer"
	ForeignJKU    Kind = "foreign-jku"
	Unsigned      Kind = "unsigned"
	SharedKey     Kind = "hs256"
	OtherSigner   Kind = "other-signer"
	Debuggable    Kind = "debuggable"
	OtherVMPL     Kind = "vmpl-1"
	SwappedKey    Kind = "swapped-key"
	OtherReport   Kind = "other-report-data"
)

// Lies of a vault, in its answers to a release.
const (
	OtherKID   Kind = "other-kid"
	OtherNonce Kind = "other-nonce"
	OtherName  Kind = "other-name" // the certificate is for another host
	OldChain   Kind = "old-chain"
	Altered    Kind = "altered"
	BadCheck   Kind = "bad-check" // of the key wrap
	ShortBlob  Kind = "wrong-length"
	OtherWrap  Kind = "other-wrap"
	NoAudience Kind = "other-audience" // the challenge names another service
)

var kinds = map[Service][]Kind{
	"": {Delay, Reset, Status, TooLong, Redirect},
	MAA: {
		Expired, Early, ForeignIssuer, ForeignJKU, Unsigned, SharedKey, OtherSigner, Debuggable, OtherVMPL, SwappedKey,
		OtherReport,
	},
	Vault: {OtherKID, OtherNonce, OtherName, OldChain, Altered, BadCheck, ShortBlob, OtherWrap, NoAudience},
}

// Fault is something that goes wrong on demand.
type Fault struct {
	Service Service `json:"service"`
	Kind    Kind    `json:"kind"`
	// Path is a part of the request's path; empty: any.
	Path string `json:"path,omitempty"`
	// Times is how often it happens. Zero means always.
	Times int `json:"times,omitempty"`
	// Status and RetryAfter belong to the kind status, DelayMS to delay.
	Status     int    `json:"status,omitempty"`
	RetryAfter string `json:"retry_after,omitempty"`
	DelayMS    int    `json:"delay_ms,omitempty"`
}

func (f Fault) check() error {
	s := f.Service
	if s == HSM {
		s = Vault
	}
	if !slices.Contains(Services, f.Service) || !slices.Contains(kinds[""], f.Kind) && !slices.Contains(kinds[s], f.Kind) {
		return fmt.Errorf("service %q has no fault %q", f.Service, f.Kind)
	}
	if f.Kind == Status && (f.Status < 400 || f.Status > 599) {
		return fmt.Errorf("fault status %d: 400 to 599", f.Status)
	}
	return nil
}

// ParseFaults reads a script: a JSON list.
func ParseFaults(b []byte) ([]Fault, error) {
	var list []Fault
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("faults: %w", err)
	}
	for i, f := range list {
		if err := f.check(); err != nil {
			return nil, fmt.Errorf("fault %d: %w", i+1, err)
		}
	}
	return list, nil
}

// SetFaults replaces the faults.
func (f *Fake) SetFaults(list ...Fault) error {
	for _, x := range list {
		if err := x.check(); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = slices.Clone(list)
	return nil
}

// take returns the first fault of a service among the kinds, and counts it.
func (f *Fake) take(s Service, path string, among ...Kind) (Fault, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, x := range f.faults {
		if x.Service != s || !slices.Contains(among, x.Kind) || !strings.Contains(path, x.Path) || x.Times < 0 {
			continue
		}
		if x.Times == 1 {
			f.faults[i].Times = -1 // used up
		} else if x.Times > 1 {
			f.faults[i].Times--
		}
		return x, true
	}
	return Fault{}, false
}

// lies tells whether a service lies in this way now.
func (f *Fake) lies(r *http.Request, k Kind) bool {
	_, ok := f.take(service(r), r.URL.Path, k)
	return ok
}

// disturb makes a fault of the connection. It tells whether the request has been answered by it.
func (f *Fake) disturb(w http.ResponseWriter, r *http.Request, s Service) bool {
	x, ok := f.take(s, r.URL.Path, kinds[""]...)
	if !ok {
		return false
	}
	switch x.Kind {
	case Delay:
		t := time.NewTimer(time.Duration(x.DelayMS) * time.Millisecond)
		defer t.Stop()
		select {
		case <-t.C:
			return false
		case <-r.Context().Done():
			return true
		}
	case Reset:
		if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
			c.Close()
		}
	case TooLong:
		answer(w, http.StatusOK, map[string]string{"token": strings.Repeat("x", maxBody+1)})
	case Redirect:
		w.Header().Set("Location", "https://other.example"+r.URL.Path)
		w.WriteHeader(http.StatusTemporaryRedirect)
	default:
		if x.RetryAfter != "" {
			w.Header().Set("Retry-After", x.RetryAfter)
		}
		refuse(w, x.Status, "Fault", "a fault of the test")
	}
	return true
}
