// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"reflect"
	"regexp"
	"strings"

	"github.com/coco-shim/coco/node/ctrd"
	"github.com/coco-shim/coco/node/engine"
)

const dockerFile = "/etc/docker/daemon.json"

// docker has runtimes in a JSON file, and reads them anew on a reload, which no container notices.
var docker = kind{
	name: "docker", sign: "/etc/docker/", file: dockerFile, socket: "/var/run/docker.sock", ask: askDocker,
	plan:    planDocker,
	restart: func(engine.Tree) []string { return []string{"systemctl", "reload", "docker"} },
	hangup:  true,
	verify:  validateDocker,
}

// JSON has no comments that could mark what is ours. Entries of ours are written in one form, on one line, and name a
// shim below a directory "versions", which nobody writes by hand.
const entry = `"[a-z0-9.-]+": \{"runtimeType": "[^"]+/versions/[0-9a-f]+/bin/containerd-shim-coco-v2"(?:, "options": \{[^{}]*\})?\}`

var (
	ourEntries = regexp.MustCompile(entry + `(?:, ` + entry + `)*(?:, )?`)
	ourObject  = regexp.MustCompile(`"runtimes": \{` + entry + `(?:, ` + entry + `)*\}(?:, )?`)
	opening    = regexp.MustCompile(`"runtimes"\s*:\s*\{`)
)

// created is a file that was not there, without its entries.
const created = "{\n  \n}\n"

func stripDocker(text []byte) []byte {
	text = ourObject.ReplaceAll(text, nil)
	text = ourEntries.ReplaceAll(text, nil)
	if string(text) == created {
		return nil
	}
	return text
}

func planDocker(t engine.Tree, h []engine.Handler) ([]engine.Edit, error) {
	path, err := t.Resolve(dockerFile)
	if err != nil {
		return nil, err
	}
	now, err := t.ReadFile(path)
	if err != nil {
		return nil, err
	}
	base := stripDocker(now)
	text := base
	if len(h) > 0 {
		if text, err = addDocker(base, h); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	if bytes.Equal(now, text) && (now == nil) == (text == nil) {
		return nil, nil
	}
	return []engine.Edit{{Path: path, Text: text}}, nil
}

func addDocker(base []byte, h []engine.Handler) ([]byte, error) {
	var all []string
	for _, r := range h {
		one := fmt.Sprintf("%q: {\"runtimeType\": %q", r.Name, r.Shim)
		if r.Config != "" {
			one += fmt.Sprintf(", \"options\": {\"ConfigPath\": %q}", r.Config)
		}
		all = append(all, one+"}")
	}
	entries := strings.Join(all, ", ")
	if base == nil {
		return []byte("{\n  \"runtimes\": {" + entries + "}\n}\n"), nil
	}
	var was map[string]any
	if err := json.Unmarshal(base, &was); err != nil {
		return nil, fmt.Errorf("it is no JSON object: %w", err)
	}
	runtimes, has := was["runtimes"].(map[string]any)
	at, insert, rest := bytes.IndexByte(base, '{')+1, "\"runtimes\": {"+entries+"}", len(was)
	if has {
		found := opening.FindAllIndex(base, -1)
		if len(found) != 1 {
			return nil, errors.New("\"runtimes\" stands in it more than once; add coco by hand (docs/docker.md)")
		}
		at, insert, rest = found[0][1], entries, len(runtimes)
	}
	if rest > 0 {
		insert += ", "
	}
	text := append(append(bytes.Clone(base[:at]), insert...), base[at:]...)
	return text, checkDocker(text, base, was, h)
}

// checkDocker holds the new text against the old one.
func checkDocker(text, base []byte, was map[string]any, h []engine.Handler) error {
	if !bytes.Equal(stripDocker(text), base) {
		return errors.New("it cannot be changed so that all else stays; add coco by hand (docs/docker.md)")
	}
	var is map[string]any
	if err := json.Unmarshal(text, &is); err != nil {
		return fmt.Errorf("it cannot be changed: %w", err)
	}
	runtimes, _ := is["runtimes"].(map[string]any)
	for _, r := range h {
		if _, ok := runtimes[r.Name]; !ok {
			return fmt.Errorf("the runtime %s does not get into it", r.Name)
		}
		delete(runtimes, r.Name)
	}
	if _, had := was["runtimes"]; !had && len(runtimes) == 0 {
		delete(is, "runtimes")
	}
	if !reflect.DeepEqual(is, was) {
		return errors.New("a runtime of coco's names is in it already; take it out first")
	}
	return nil
}

// validateDocker asks dockerd, which since 23 can read its files without running.
func validateDocker(ctx context.Context) error {
	path, err := exec.LookPath("dockerd")
	if err != nil {
		return nil //nolint:nilerr // the daemon is elsewhere; it says no at the reload
	}
	out, err := exec.CommandContext(ctx, path, "--validate", "--config-file", dockerFile).CombinedOutput()
	if err != nil {
		return fmt.Errorf("dockerd does not take %s: %w: %s", dockerFile, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// askDocker asks the running daemon.
func askDocker(ctx context.Context, socket string) (map[string]string, error) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", socket)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ctrd.ErrNotRunning, err)
		}
		return conn, nil
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/info", http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var info struct {
		Runtimes map[string]struct {
			Path string `json:"path"` // of a command line; Docker does not say which shims it has
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&info); err != nil {
		return nil, fmt.Errorf("what Docker at %s says of itself: %w", socket, err)
	}
	out := map[string]string{}
	for name, r := range info.Runtimes {
		out[name] = r.Path
	}
	return out, nil
}
