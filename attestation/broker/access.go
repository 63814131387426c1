// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/coco-shim/coco/attestation/broker/token"
	"github.com/coco-shim/coco/attestation/kbs"
)

// AdminRole is the role of the broker's own token that may do everything.
const AdminRole = "admin"

// Role says what an administrator's role may do.
type Role struct {
	Name string
	// Endpoints are regular expressions over method and path, such as "POST /kbs/v0/resource/team-a/.*". Each must match
	// the whole.
	Endpoints []string
}

// access checks administrators' tokens.
type access struct {
	own     *token.Signer
	issuers []token.Issuer
	roles   map[string][]*regexp.Regexp
}

func newAccess(own *token.Signer, cfg Config) (access, error) {
	a := access{own: own, issuers: cfg.Admins, roles: map[string][]*regexp.Regexp{}}
	for _, r := range append([]Role{{AdminRole, []string{".*"}}}, cfg.Roles...) {
		if _, ok := a.roles[r.Name]; ok || r.Name == "" {
			return a, fmt.Errorf("role %q is empty, stands twice, or is the built-in one", r.Name)
		}
		a.roles[r.Name] = nil
		for _, text := range r.Endpoints {
			re, err := regexp.Compile(`^(?:` + text + `)$`)
			if err != nil {
				return a, fmt.Errorf("role %s: %w", r.Name, err)
			}
			a.roles[r.Name] = append(a.roles[r.Name], re)
		}
	}
	for _, i := range cfg.Admins {
		if i.Name == "" || i.Name == adminIssuer || i.Audience == "" {
			return a, errors.New("an issuer of administrators' tokens needs a name of its own and an audience")
		}
	}
	return a, nil
}

func (a access) has(role string) bool { _, ok := a.roles[role]; return ok }

// role returns the role of a valid token.
func (a access) role(text string) (string, error) {
	claims, err := a.own.Verify(text, adminAudience)
	for _, i := range a.issuers {
		if err == nil {
			break
		}
		if c, other := i.Verify(text); other == nil {
			claims, err = c, nil
		} else if errors.Is(other, token.ErrExpired) {
			err = other
		}
	}
	if err != nil {
		return "", err
	}
	role, _ := claims["role"].(string)
	if !a.has(role) {
		return "", fmt.Errorf("%w: its role %.40q is not known", errRole, role)
	}
	return role, nil
}

var errRole = errors.New("not allowed")

// admit lets administrators in whose role allows the route. An invalid token is 401, a role that does not suffice 403.
func (b *Broker) admit(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		endpoint := r.Method + " " + r.URL.Path
		deny := func(status int, err error) {
			b.counters.add("admin", "denied")
			b.recordRefusal("admin", "denied", map[string]string{
				"endpoint": short(endpoint), "address": addrOf(r), "reason": err.Error(),
			})
			refuse(w, status, kbs.AdminAuthAccess, fmt.Sprintf("admin access denied for endpoint %s: %v", r.URL.Path, err))
		}
		text, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok {
			deny(http.StatusUnauthorized, errors.New("no token of an administrator"))
			return
		}
		role, err := b.access.role(text)
		switch {
		case errors.Is(err, errRole):
			deny(http.StatusForbidden, err)
			return
		case err != nil:
			deny(http.StatusUnauthorized, err)
			return
		}
		for _, re := range b.access.roles[role] {
			if re.MatchString(endpoint) {
				b.administer(w, r, next, role)
				return
			}
		}
		deny(http.StatusForbidden, fmt.Errorf("%w to role %s", errRole, role))
	}
}

// administer runs a handler. A change is in the audit log before it happens, and anchored afterwards.
func (b *Broker) administer(w http.ResponseWriter, r *http.Request, next http.HandlerFunc, role string) {
	b.counters.add("admin", "ok")
	if r.Method != http.MethodGet {
		fields := map[string]string{"endpoint": short(r.Method + " " + r.URL.Path), "role": role, "address": addrOf(r)}
		err := b.cfg.Audit.Write("admin", "allowed", fields)
		if err == nil {
			err = b.anchor()
		}
		if err != nil {
			refuse(w, http.StatusInternalServerError, kbs.HTTPFailed, "the audit log cannot be written: "+err.Error())
			return
		}
	}
	next(w, r)
}
