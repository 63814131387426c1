// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Environment of TestThePageInABrowser: a Chromium without windows, and the picture that it makes.
const (
	browserProgram = "COCO_BROWSER"
	browserPicture = "COCO_BROWSER_PICTURE"
)

// owned is what a script in a policy or a set would do to the page.
const owned = `<script>document.title = "owned"; document.body.textContent = ""</script>`

// shownBroker runs a broker that has refused a guest and given it a secret later, and coco kbs page before it.
func shownBroker(t *testing.T) (broker *running, url string) {
	t.Helper()
	r := start(t, func(o *serveOptions) { o.allowInsecure = true })
	r.must(t, "resource", "put", "default/db/password", file(t, "correct horse"))
	r.must(t, "resource", "put", "default/db/user", file(t, "alice"))
	doc := file(t, "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.coco\" = \"x\"\n")
	get := []string{
		"get", "--url", r.url, "--cert", filepath.Join(r.dir, fileCert), "--insecure-sample", "--initdata", doc,
		"default/db/password",
	}
	if _, err := run(t, get...); exit(err) != 5 {
		t.Fatalf("without reference values: %v", err)
	}
	m := regexp.MustCompile(`"init_data": "([0-9a-f]{64})"`).FindStringSubmatch(r.must(t, "attestations", "--json"))
	if m == nil {
		t.Fatal("no attestation")
	}
	values := fmt.Sprintf(`{"launch_digest":["abcde"],"svn":["1"],"init_data":[%q],"note":[%q]}`, m[1], owned)
	message := file(t, `{"type":"sample","payload":"`+base64.StdEncoding.EncodeToString([]byte(values))+`"}`)
	r.must(t, "reference", "add", "--set", "release-1", "--expires", "2999-01-01", message)
	r.must(t, "policy", "set", "resource", file(t, "# "+owned+"\n"+r.must(t, "policy", "show", "resource")))
	if out, err := run(t, get...); err != nil || out != "correct horse" {
		t.Fatalf("%q, %v", out, err)
	}
	return r, servePage(t, r)
}

// servePage runs coco kbs page until the test ends.
func servePage(t *testing.T, r *running) (url string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	in, out := io.Pipe()
	cmd := Command()
	cmd.SetErr(out)
	cmd.SetArgs([]string{
		"page", "--listen", "127.0.0.1:0", "--url", r.url, "--cert", filepath.Join(r.dir, fileCert),
		"--token-file", filepath.Join(r.dir, "admin.token"),
	})
	done := make(chan error, 1)
	go func() {
		err := cmd.ExecuteContext(ctx)
		_ = out.CloseWithError(io.EOF)
		done <- err
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if _, err := fmt.Fscanf(in, "coco: serving at %s\n", &url); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, in) }()
	return url
}

// seenOnPage is on the page of shownBroker, and unseenOnPage is not.
var (
	seenOnPage = []string{
		"default/db/password", "default/db/user", "release-1", "2999-01-01", "launch_digest", "affirming",
		"contraindicated", "executables is warning", "insecure: proves nothing", "Policy: attestation", "package policy",
	}
	unseenOnPage = []string{"correct horse", "alice", "eyJ", "<script"}
)

// The page tells what the broker has and why it refused, gives away neither secret nor token, and shows what others
// have written as text.
func TestThePage(t *testing.T) {
	r, url := shownBroker(t)
	ask := func(method, path string) (*http.Response, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(text)
	}
	resp, text := ask("GET", "")
	if resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Security-Policy"), "default-src 'none';") {
		t.Fatalf("%s %v: %s", resp.Status, resp.Header, text)
	}
	for _, want := range seenOnPage {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not have %q:\n%s", want, text)
		}
	}
	for _, not := range unseenOnPage {
		if strings.Contains(text, not) {
			t.Errorf("the page has %q:\n%s", not, text)
		}
	}
	for request, want := range map[string]int{"GET kbs/v0/admin/resources": 404, "POST ": 405, "DELETE ": 405} {
		method, path, _ := strings.Cut(request, " ")
		if resp, _ := ask(method, path); resp.StatusCode != want {
			t.Errorf("%s: %s, want %d", request, resp.Status, want)
		}
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if resp, text = ask("GET", ""); resp.StatusCode != 502 || !strings.Contains(text, "the broker does not answer") {
		t.Errorf("without a broker: %s %s", resp.Status, text)
	}
}

// The same in Chromium: what it has made of the page, and a picture of it.
func TestThePageInABrowser(t *testing.T) {
	browser := os.Getenv(browserProgram)
	if browser == "" {
		t.Skip("make kbs-page runs it")
	}
	_, url := shownBroker(t)
	picture := os.Getenv(browserPicture)
	if picture == "" {
		picture = filepath.Join(t.TempDir(), "page.png")
	}
	chromium := func(flags ...string) string {
		args := append([]string{
			"--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--user-data-dir=" + t.TempDir(),
		}, flags...)
		out, err := exec.CommandContext(t.Context(), browser, append(args, url)...).Output()
		if err != nil {
			t.Fatalf("%s: %v", browser, err)
		}
		return string(out)
	}
	dom := chromium("--dump-dom")
	if !strings.Contains(dom, "<title>Key broker – coco</title>") || strings.Count(dom, "<script") != 0 {
		t.Errorf("a script ran, or the page is another one:\n%s", dom)
	}
	for id, rows := range map[string]int{"attestations": 3, "secrets": 3, "sets": 2} { // with their headings
		_, table, _ := strings.Cut(dom, `<table id="`+id+`">`)
		table, _, _ = strings.Cut(table, "</table>")
		if n := strings.Count(table, "<tr>"); n != rows {
			t.Errorf("%s: %d rows, want %d:\n%s", id, n, rows, table)
		}
	}
	for _, want := range seenOnPage {
		if !strings.Contains(dom, want) {
			t.Errorf("the browser does not show %q", want)
		}
	}
	chromium("--screenshot="+picture, "--window-size=1280,1100")
	if info, err := os.Stat(picture); err != nil || info.Size() < 10_000 {
		t.Errorf("no picture: %v", err)
	}
}
