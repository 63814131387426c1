// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coco-shim/coco/internal/guesttls"
)

// Transport is what a transport may reach.
type Transport struct {
	Roots []*x509.Certificate // of certificates that are trusted; the system's are not
	// Proxy returns the proxy for a URL, nil for none; nil: there is none.
	Proxy func(*url.URL) (*url.URL, error)
	// Allow admits an address that Forbidden names; nil: none.
	Allow func(netip.Addr) bool
}

const (
	dialTimeout = 10 * time.Second
	tlsVersion  = tls.VersionTLS12 // of registries
)

// New returns a transport.
func (t Transport) New() *http.Transport {
	d := &net.Dialer{Timeout: dialTimeout, Control: func(_, address string, _ syscall.RawConn) error {
		a, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		if t.Allow != nil && t.Allow(a.Addr()) {
			return nil
		}
		return Forbidden(a.Addr())
	}}
	out := guesttls.Transport(tlsVersion, t.verify)
	out.DialContext = d.DialContext
	out.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		return t.dialTLS(ctx, d, network, address)
	}
	if t.Proxy != nil {
		out.Proxy = func(r *http.Request) (*url.URL, error) { return t.Proxy(r.URL) }
	}
	return out
}

func (t Transport) verify(chain []*x509.Certificate, host string) error {
	roots := t.Roots
	if roots == nil {
		roots = []*x509.Certificate{} // nil would mean those of the system
	}
	if err := guesttls.Verify(chain, roots, host); err != nil {
		return &finalError{fmt.Errorf("its certificate is not trusted: %w; initdata names the CAs of registries", err)}
	}
	return nil
}

// dialTLS connects. Unlike the transport itself it knows the name of a host that is an address.
func (t Transport) dialTLS(ctx context.Context, d *net.Dialer, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	raw, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c := tls.Client(raw, &tls.Config{
		ServerName: host, MinVersion: tlsVersion,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection does it, without the guest's clock
		VerifyConnection:   func(s tls.ConnectionState) error { return t.verify(s.PeerCertificates, host) },
	})
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return c, nil
}

// metadata are addresses of clouds' services for their machines that lie outside of the link's: of EC2 by IPv6, of
// Azure's WireServer, and of Alibaba.
var metadata = []netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("168.63.129.16"), netip.MustParseAddr("100.100.100.200"),
}

// Forbidden returns an error for addresses that no registry has: of this machine, of the link, where clouds have their
// metadata service, of such services elsewhere, and of groups.
func Forbidden(a netip.Addr) error {
	a = a.Unmap()
	switch {
	case a.IsLoopback(), a.IsUnspecified(), a.IsLinkLocalUnicast(), a.IsMulticast(),
		slices.Contains(metadata, a):
		return &finalError{fmt.Errorf("%s is no address of a registry: it is this machine's, or a metadata service's", a)}
	}
	return nil
}

// get makes a request, answers challenges, and follows redirects. The caller closes the body of the response.
func (r *Repository) get(ctx context.Context, from string, header http.Header) (*http.Response, error) {
	at, err := url.Parse(from)
	if err != nil {
		return nil, err
	}
	registry := at.Host
	for range maxRedirects {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), http.NoBody)
		if err != nil {
			return nil, err
		}
		req.Header = header.Clone()
		if r.token != "" && at.Host == registry {
			req.Header.Set("Authorization", r.token)
		}
		resp, err := r.cfg.Transport.RoundTrip(req)
		if err != nil {
			return nil, fmt.Errorf("ask %s: %w", at.Host, err)
		}
		switch {
		case resp.StatusCode == http.StatusUnauthorized && at.Host == registry && !r.answered:
			_ = drain(resp)
			if err := r.login(ctx, resp.Header.Values("WWW-Authenticate"), at); err != nil {
				return nil, err
			}
		case resp.StatusCode >= 300 && resp.StatusCode < 400:
			_ = drain(resp)
			if at, err = redirect(at, resp.Header.Get("Location")); err != nil {
				return nil, err
			}
		default:
			if resp.StatusCode != http.StatusUnauthorized {
				r.answered = false // a token that ends later is replaced
			}
			return resp, nil
		}
	}
	return nil, &finalError{fmt.Errorf("%s redirects more than %d times", from, maxRedirects)}
}

// drain frees the connection of a response that is not needed.
func drain(resp *http.Response) error {
	_, _ = io.CopyN(io.Discard, resp.Body, maxErrorBody)
	return resp.Body.Close()
}

func redirect(from *url.URL, location string) (*url.URL, error) {
	to, err := from.Parse(location)
	if err != nil || location == "" {
		return nil, &finalError{fmt.Errorf("%s redirects to %.100q, which is no URL", from.Host, location)}
	}
	if to.Scheme != "https" || to.Host == "" || to.User != nil {
		return nil, &finalError{fmt.Errorf("%s redirects to %s://%s, and https alone is followed", from.Host, to.Scheme,
			to.Host)}
	}
	return to, nil
}

// login answers a challenge.
func (r *Repository) login(ctx context.Context, challenges []string, at *url.URL) error {
	r.answered = true
	var user Login
	known := false
	if r.cfg.Login != nil {
		user, known = r.cfg.Login(r.name)
	}
	for _, c := range challenges {
		scheme, params, err := parseChallenge(c)
		if err != nil {
			return &finalError{fmt.Errorf("%s: %w", at.Host, err)}
		}
		switch {
		case strings.EqualFold(scheme, "basic") && known:
			req := &http.Request{Header: http.Header{}}
			req.SetBasicAuth(user.User, user.Password)
			r.token = req.Header.Get("Authorization")
			return nil
		case strings.EqualFold(scheme, "bearer"):
			token, err := r.fetchToken(ctx, params, user, known)
			if err != nil {
				return fmt.Errorf("log in to %s: %w", at.Host, err)
			}
			r.token = "Bearer " + token
			return nil
		}
	}
	return &finalError{fmt.Errorf("%s wants a login, and initdata has none for %s", at.Host, r.name)}
}

// fetchToken asks the server that a challenge names. It gets the login only over https.
func (r *Repository) fetchToken(ctx context.Context, params map[string]string, user Login, known bool) (string, error) {
	realm, err := url.Parse(params["realm"])
	if err != nil || realm.Scheme != "https" || realm.Host == "" || realm.User != nil {
		return "", &finalError{fmt.Errorf("its server for tokens is %.100q, and https alone is asked", params["realm"])}
	}
	q := realm.Query()
	if s := params["service"]; s != "" {
		q.Set("service", s)
	}
	q.Set("scope", "repository:"+r.path+":pull")
	realm.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), http.NoBody)
	if err != nil {
		return "", err
	}
	if known {
		req.SetBasicAuth(user.User, user.Password)
	}
	resp, err := r.cfg.Transport.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", refusal(resp)
	}
	var t struct {
		Token  string `json:"token"`
		Access string `json:"access_token"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&t); err != nil {
		return "", fmt.Errorf("the answer of %s: %w", realm.Host, err)
	}
	if t.Token == "" {
		t.Token = t.Access
	}
	if t.Token == "" || strings.ContainsAny(t.Token, "\r\n\x00") {
		return "", &finalError{fmt.Errorf("the answer of %s has no token", realm.Host)}
	}
	return t.Token, nil
}

// parseChallenge reads a header WWW-Authenticate with one challenge (RFC 9110, 11.6.1).
func parseChallenge(text string) (scheme string, params map[string]string, err error) {
	scheme, rest, _ := strings.Cut(strings.TrimSpace(text), " ")
	params = map[string]string{}
	for rest = strings.TrimLeft(rest, " ,"); rest != ""; rest = strings.TrimLeft(rest, " ,") {
		name, value, ok := strings.Cut(rest, "=")
		if !ok || len(params) > 16 {
			return "", nil, fmt.Errorf("cannot read the challenge %.100q", text)
		}
		if strings.HasPrefix(value, `"`) {
			if value, rest, ok = strings.Cut(value[1:], `"`); !ok {
				return "", nil, fmt.Errorf("cannot read the challenge %.100q", text)
			}
		} else {
			value, rest, _ = strings.Cut(value, ",")
		}
		params[strings.ToLower(strings.TrimSpace(name))] = value
	}
	return scheme, params, nil
}
