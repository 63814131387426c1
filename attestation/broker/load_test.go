// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// Load that the broker has to bear on two cores, beside the program that asks it.
const (
	loadAttestations = 200 // a second
	loadResources    = 500 // a second
	loadTail         = 150 * time.Millisecond
	loadMemory       = 60 << 10 // KiB
)

// Environment of TestLoad: for how long it asks, and in its child the directory that the two share.
const (
	loadTime = "COCO_KBS_LOAD"
	loadDir  = "COCO_KBS_LOAD_DIR"
)

// loaded is what the broker's process tells the one that asks.
type loaded struct {
	URL        string `json:"url"`
	Cert       []byte `json:"cert"`
	Token      string `json:"token"`
	Handshakes []sent `json:"handshakes"`
}

type sent struct {
	Cookie  string `json:"cookie"`
	Message []byte `json:"message"`
}

// TestServeLoad is no test but the broker of TestLoad: a process of its own, so that its memory can be told.
func TestServeLoad(t *testing.T) {
	dir := os.Getenv(loadDir)
	if dir == "" {
		t.Skip("make bench-kbs runs it")
	}
	n, err := strconv.Atoi(os.Getenv(loadTime))
	if err != nil {
		t.Fatal(err)
	}
	w := begin(t, true, func(c *Config) { c.MaxSessions = 1 << 30 })
	tok, err := w.client(nil).Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := loaded{URL: w.srv.URL, Cert: w.srv.Certificate().Raw, Token: tok.JWT}
	for range n {
		h := w.prepare(t)
		out.Handshakes = append(out.Handshakes, sent{h.cookie, h.message})
	}
	text, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "loaded.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the other process ends
}

// TestLoad asks a broker over TLS on the loopback device, at fixed rates that do not slow down with it, and as fast as
// it answers. Making evidence is not counted; verifying it, the policy, the token and the audit log are.
func TestLoad(t *testing.T) {
	d, err := time.ParseDuration(os.Getenv(loadTime))
	if err != nil {
		t.Skip("make bench-kbs runs it")
	}
	seconds := int(d / time.Second)
	pid, in := startLoaded(t, 2*seconds*loadAttestations)
	attest, resource := in.requests(t)
	half := seconds * loadAttestations

	report := func(what string, rate int, took []time.Duration, kib int) {
		slices.Sort(took)
		p99 := took[len(took)*99/100]
		t.Logf("%s: %d/s for %v: median %v, p99 %v, slowest %v; the broker has %.1f MiB (RSS)", what, rate, d,
			took[len(took)/2].Round(100*time.Microsecond), p99.Round(100*time.Microsecond),
			took[len(took)-1].Round(100*time.Microsecond), float64(kib)/1024)
		if p99 > loadTail || kib > loadMemory {
			t.Errorf("%s: p99 %v and %d KiB are more than %v and %d KiB", what, p99, kib, loadTail, loadMemory)
		}
	}
	took := atRate(half, loadAttestations, attest)
	report("attestations", loadAttestations, took, residentOf(t, pid))
	took = atRate(seconds*loadResources, loadResources, resource)
	report("resources", loadResources, took, residentOf(t, pid))
	t.Logf("as fast as it answers: %.0f attestations/s, %.0f resources/s",
		asFastAs(half, func(i int) { attest(half + i) }), asFastAs(seconds*loadResources, resource))
	t.Logf("afterwards it has %.1f MiB", float64(residentOf(t, pid))/1024)
}

// startLoaded starts the broker and returns its pid and what it has prepared.
func startLoaded(t *testing.T, handshakes int) (pid int, in *loaded) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0], "-test.run=^TestServeLoad$")
	cmd.Env = append(os.Environ(), loadDir+"="+dir, loadTime+"="+strconv.Itoa(handshakes))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_, _ = io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the broker: %v", err)
		}
	})
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() != "ready" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, "loaded.json"))
		if err == nil {
			err = json.Unmarshal(text, &in)
		}
		if err != nil {
			t.Fatal(err)
		}
		return cmd.Process.Pid, in
	}
	t.Fatal("the broker does not start")
	return 0, nil
}

// requests returns functions that send the i-th attestation, and a request for the resource.
func (in *loaded) requests(t *testing.T) (attest, resource func(i int)) {
	t.Helper()
	cert, err := x509.ParseCertificate(in.Cert)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	c := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, MaxIdleConnsPerHost: 64,
	}}
	t.Cleanup(c.CloseIdleConnections)
	send := func(method, path string, body []byte, name, value string) {
		req, err := http.NewRequestWithContext(t.Context(), method, in.URL+path, bytes.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		req.Header.Set(name, value)
		resp, err := c.Do(req)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %d %.200s, %v", path, resp.StatusCode, text, err)
		}
	}
	return func(i int) {
			send(http.MethodPost, "/kbs/v0/attest", in.Handshakes[i].Message, "Cookie", in.Handshakes[i].Cookie)
		}, func(int) {
			send(http.MethodGet, "/kbs/v0/resource/"+password, nil, "Authorization", "Bearer "+in.Token)
		}
}

// atRate sends n requests at a rate, and returns how long each took from the moment at which it was due.
func atRate(n, rate int, send func(i int)) []time.Duration {
	took := make([]time.Duration, n)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range took {
		due := began.Add(time.Duration(i) * time.Second / time.Duration(rate))
		time.Sleep(time.Until(due))
		wg.Go(func() {
			send(i)
			took[i] = time.Since(due)
		})
	}
	wg.Wait()
	return took
}

// asFastAs sends n requests by eight at a time, and returns how many were answered in a second.
func asFastAs(n int, send func(i int)) float64 {
	next := make(chan int)
	var wg sync.WaitGroup
	began := time.Now()
	for range 8 {
		wg.Go(func() {
			for i := range next {
				send(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	return float64(n) / time.Since(began).Seconds()
}

var residentLine = regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB$`)

// residentOf is the memory of a process, in KiB.
func residentOf(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := residentLine.FindSubmatch(text)
	if m == nil {
		t.Fatalf("no VmRSS in %s", text)
	}
	kib, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kib
}
