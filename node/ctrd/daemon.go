// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package ctrd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// How long one question to containerd may take, and a restart.
const (
	askTimeout   = 20 * time.Second
	startTimeout = 60 * time.Second
)

// peerPID returns the process that has bound a socket, 0 if none listens there.
func peerPID(ctx context.Context, socket string) int {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return 0
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	err = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	if err != nil {
		return 0
	}
	return pid
}

// Hangup sends SIGHUP to the daemon that listens on a socket.
func Hangup(ctx context.Context, socket string) error {
	pid := peerPID(ctx, socket)
	if pid <= 1 {
		return fmt.Errorf("no daemon of its own listens at %s", socket)
	}
	return unix.Kill(pid, unix.SIGHUP)
}

// peer returns the program that listens on a socket, and its arguments. ok is false if nothing does.
func peer(ctx context.Context, socket string) (exe string, args []string, ok bool) {
	pid := peerPID(ctx, socket)
	if pid == 0 {
		return "", nil, false
	}
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	exe, err := os.Readlink(filepath.Join(dir, "exe"))
	if err != nil {
		return "", nil, false
	}
	text, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return "", nil, false
	}
	return strings.TrimSuffix(exe, " (deleted)"), strings.Split(strings.TrimRight(string(text), "\x00"), "\x00"), true
}

// configArg returns the file that -c or --config names.
func configArg(args []string) string {
	for i, a := range args {
		name, value, has := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(a, "-"), "-"), "=")
		if !strings.HasPrefix(a, "-") || name != "c" && name != "config" {
			continue
		}
		if has {
			return value
		}
		if i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}

var versionText = regexp.MustCompile(`\bv?(\d+)\.(\d+)\.\d+`)

// askVersion returns the version that a containerd says it has.
func askVersion(ctx context.Context, binary string) (text string, major int, err error) {
	out, err := run(ctx, binary, "--version")
	if err != nil {
		return "", 0, err
	}
	m := versionText.FindStringSubmatch(string(out))
	if m == nil {
		return "", 0, fmt.Errorf("%s --version says %q, which has no version in it", binary, strings.TrimSpace(string(out)))
	}
	major, err = strconv.Atoi(m[1])
	return m[0], major, err
}

func run(ctx context.Context, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(append([]string{name}, args...), " "), err,
			lastLines(stderr.String()))
	}
	return out, nil
}

// lastLines returns what a program said last.
func lastLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], "; ")
}

// AskDump asks a containerd what it makes of a file. Without the file the daemon has its defaults, which 1.x does not
// dump.
func AskDump(ctx context.Context, binary, file string, major int) (Dump, error) {
	args := []string{"-c", file, "config", "dump"}
	if _, err := os.Stat(file); err != nil && major < 2 {
		args = []string{"config", "default"}
	}
	out, err := run(ctx, binary, args...)
	if err != nil {
		return nil, err
	}
	return ParseDump(out)
}

// errNoCRI is the error of a containerd without its CRI plugin.
var errNoCRI = errors.New("containerd runs without its CRI plugin")

// ErrNotRunning says that nothing listens at an engine's socket.
var ErrNotRunning = errors.New("it does not run")

// Loaded asks a running containerd for its handlers: their names, and the shims of those that name one.
func Loaded(ctx context.Context, socket string) (map[string]string, error) {
	if _, _, running := peer(ctx, socket); !running {
		return nil, fmt.Errorf("nothing listens at %s: %w", socket, ErrNotRunning)
	}
	return loaded(ctx, socket)
}

// LoadedNames asks a running CRI of another kind, whose answer has names only.
func LoadedNames(ctx context.Context, socket string) (map[string]string, error) {
	if _, _, running := peer(ctx, socket); !running {
		return nil, fmt.Errorf("nothing listens at %s: %w", socket, ErrNotRunning)
	}
	answer, err := ask(ctx, socket)
	if err != nil {
		return nil, err
	}
	if len(answer.GetRuntimeHandlers()) == 0 {
		return nil, fmt.Errorf("the CRI at %s does not say which handlers it has", socket)
	}
	out := map[string]string{}
	for _, h := range answer.GetRuntimeHandlers() {
		out[h.GetName()] = ""
	}
	return out, nil
}

func ask(ctx context.Context, socket string) (*cri.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	answer, err := cri.NewRuntimeServiceClient(conn).Status(ctx, &cri.StatusRequest{Verbose: true})
	if status.Code(err) == codes.Unimplemented {
		return nil, errNoCRI
	}
	if err != nil {
		return nil, fmt.Errorf("ask the CRI at %s: %w", socket, err)
	}
	return answer, nil
}

func loaded(ctx context.Context, socket string) (map[string]string, error) {
	answer, err := ask(ctx, socket)
	if err != nil {
		return nil, err
	}
	var config struct {
		Containerd struct {
			Runtimes map[string]struct {
				Path string `json:"runtimePath"`
			} `json:"runtimes"`
		} `json:"containerd"`
	}
	if err := json.Unmarshal([]byte(answer.GetInfo()["config"]), &config); err != nil {
		return nil, fmt.Errorf("the configuration that containerd at %s has: %w", socket, err)
	}
	out := map[string]string{}
	for name, r := range config.Containerd.Runtimes {
		out[name] = r.Path
	}
	return out, nil
}

// await asks until the daemon has the handlers of ours that its configuration has, and a CRI unless that is disabled.
func await(ctx context.Context, socket string, config Dump) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(ctx, socket, config)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after the restart: %w; its log says more", err)
		case <-tick.C:
		}
	}
}

func ready(ctx context.Context, socket string, config Dump) error {
	runtimes, err := loaded(ctx, socket)
	if errors.Is(err, errNoCRI) && disabled(config) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range config.Ours() {
		if _, ok := runtimes[name]; !ok {
			return fmt.Errorf("containerd has not loaded the handler %s, which is in its configuration", name)
		}
	}
	return nil
}

// shimsBelow returns the names of handlers whose shim is below a directory.
func shimsBelow(runtimes map[string]string, dir string) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(runtimes)) {
		if strings.HasPrefix(runtimes[name], dir+"/") {
			names = append(names, name)
		}
	}
	return names
}
