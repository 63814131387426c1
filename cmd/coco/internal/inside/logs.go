// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package inside

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/pods"
)

// podLogs is where the kubelet has the logs of pods.
var podLogs = "/var/log/pods"

// maxLine bounds a line of a log; the kubelet's are at most 16 KiB each.
const maxLine = 1 << 20

// logOptions are the flags of coco logs.
type logOptions struct {
	container  string
	tail       int // lines; -1: all
	follow     bool
	timestamps bool
}

// LogsCommand returns coco logs.
func LogsCommand() *cobra.Command {
	var config string
	var o logOptions
	cmd := &cobra.Command{
		Use:   "logs POD",
		Short: "Print the output of a container",
		Long: "Reads the output where its engine keeps it: the kubelet's files below /var/log/pods, Docker's log, the\n" +
			"file of ctr run --log-uri. It needs no API server. POD is as in coco inspect.",
		Example: "  sudo coco logs default/web\n  sudo coco logs default/web -c nginx --tail 20 --follow",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.tail < -1 {
				return fmt.Errorf("--tail %d is no number of lines; -1 is all", o.tail)
			}
			t, err := pods.Open(cmd.Context(), config, args[0], o.container)
			if err != nil {
				return err
			}
			defer t.Close()
			p := &printer{out: cmd.OutOrStdout(), err: cmd.ErrOrStderr(), timestamps: o.timestamps}
			if t.Engine == "docker" {
				return dockerLogs(cmd.Context(), t.ID, o, p)
			}
			path, parse, err := logFile(cmd.Context(), t)
			if err != nil {
				return err
			}
			return printLog(cmd.Context(), path, o, func(line string) error { return parse(p, line) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&config, "config", "", "configuration file, as the shim finds it by default")
	f.StringVarP(&o.container, "container", "c", "", "container of the pod, by name or the beginning of its id")
	f.IntVar(&o.tail, "tail", -1, "last lines only; -1: all")
	f.BoolVarP(&o.follow, "follow", "f", false, "go on printing until interrupted")
	f.BoolVar(&o.timestamps, "timestamps", false, "begin each line with its time (Kubernetes and Docker)")
	return cmd
}

// logFile returns the file of a container's output and the reader of its lines.
func logFile(ctx context.Context, t pods.Target) (string, func(*printer, string) error, error) {
	if t.Engine == "kubernetes" {
		path, err := kubeLog(t)
		return path, (*printer).cri, err
	}
	st, err := t.State(ctx, t.ID)
	if err != nil {
		return "", nil, err
	}
	u, err := url.Parse(st.Stdout)
	switch {
	case st.Stdout == "":
		return "", nil, fmt.Errorf("container %s has no output: it was started without one", t.ID)
	case err == nil && u.Scheme == "file":
		return u.Path, (*printer).plain, nil
	case err == nil && u.Scheme == "binary":
		return "", nil, fmt.Errorf("the output of container %s goes to the program %s; ask the command that started it, "+
			"for example nerdctl logs", t.ID, u.Path)
	}
	return "", nil, fmt.Errorf("the output of container %s goes to the terminal that started it and is kept nowhere; "+
		"start it with ctr run --log-uri file:///PATH to keep it", t.ID)
}

// kubeLog returns the kubelet's newest file of a container.
func kubeLog(t pods.Target) (string, error) {
	namespace, name, _ := strings.Cut(t.Pod, "/")
	for _, part := range []string{namespace, name, t.PodUID, t.Container} {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "/*?[\\") {
			return "", fmt.Errorf("%q is no name of Kubernetes, so the log of pod %s cannot be found", part, t.Pod)
		}
	}
	dir := filepath.Join(podLogs, namespace+"_"+name+"_"+t.PodUID, t.Container)
	files, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("find the log of container %s: %w; kubectl logs asks the kubelet, which may keep it elsewhere",
			t.Container, err)
	}
	newest := -1 // the number of restarts
	for _, f := range files {
		if n, err := strconv.Atoi(strings.TrimSuffix(f.Name(), ".log")); err == nil {
			newest = max(newest, n)
		}
	}
	if newest < 0 {
		return "", fmt.Errorf("container %s has no log in %s yet", t.Container, dir)
	}
	return filepath.Join(dir, strconv.Itoa(newest)+".log"), nil
}

// printer writes lines to the stream that the container wrote them to.
type printer struct {
	out, err   io.Writer
	timestamps bool
}

// cri prints a line of CRI's format, "TIME stdout|stderr F|P TEXT"; P is a part that ends without a newline.
func (p *printer) cri(line string) error {
	f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
	if len(f) < 4 {
		return fmt.Errorf("line %.80q is not of CRI's log format", line)
	}
	to, text := p.out, f[3]
	if f[1] == "stderr" {
		to = p.err
	}
	if p.timestamps {
		text = f[0] + " " + text
	}
	if !strings.HasPrefix(f[2], "P") {
		text += "\n"
	}
	_, err := io.WriteString(to, text)
	return err
}

func (p *printer) plain(line string) error {
	_, err := io.WriteString(p.out, line)
	return err
}

// printLog gives the lines of a file to each, and with follow those that are added until ctx ends. A file that is
// rotated is read on in the new one.
func printLog(ctx context.Context, path string, o logOptions, each func(string) error) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 64<<10)
	var last []string
	rest, err := lines(r, "", func(line string) error {
		if o.tail < 0 {
			return each(line)
		}
		if last = append(last, line); len(last) > 2*o.tail {
			last = slices.Delete(last, 0, len(last)-o.tail)
		}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	if !o.follow && rest != "" {
		last = append(last, rest)
	}
	if o.tail >= 0 {
		last = last[max(0, len(last)-o.tail):]
	}
	for _, line := range last {
		if err := each(line); err != nil {
			return err
		}
	}
	if !o.follow {
		return nil
	}
	return followLog(ctx, f, path, rest, each)
}

// followLog reads on at the place where f stands, behind the beginning of a line. The caller closes f.
func followLog(ctx context.Context, f *os.File, path, rest string, each func(string) error) error {
	first := f
	defer func() {
		if f != first {
			_ = f.Close() // only read from
		}
	}()
	r := bufio.NewReaderSize(f, 64<<10)
	tick := time.NewTicker(followInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil // the user's way to end it
		case <-tick.C:
		}
		next := rotated(f, path)
		var err error
		if rest, err = lines(r, rest, each); err != nil { // also the lines from before the rotation
			return errors.Join(err, closeIf(next))
		}
		if next != nil {
			if f != first {
				_ = f.Close() // only read from
			}
			f, rest = next, ""
			r.Reset(f)
		}
	}
}

func closeIf(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

const followInterval = 300 * time.Millisecond

// lines gives the whole lines up to the end to each and returns the beginning of the next one.
func lines(r *bufio.Reader, rest string, each func(string) error) (string, error) {
	for {
		part, err := r.ReadSlice('\n')
		rest += string(part)
		if err == nil || len(rest) > maxLine {
			if err := each(rest); err != nil {
				return "", err
			}
			rest = ""
			continue
		}
		if errors.Is(err, io.EOF) {
			return rest, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return "", fmt.Errorf("read the log: %w", err)
		}
	}
}

// rotated opens the file that is at a path now, if it is another one than f.
func rotated(f *os.File, path string) *os.File {
	old, err := f.Stat()
	if err != nil {
		return nil
	}
	if now, err := os.Stat(path); err != nil || os.SameFile(old, now) {
		return nil
	}
	next, err := os.Open(path)
	if err != nil {
		return nil // it is being rotated; the next tick finds it
	}
	return next
}

// dockerLogs asks Docker, whichever way it keeps its logs.
func dockerLogs(ctx context.Context, id string, o logOptions, p *printer) error {
	q := url.Values{"stdout": {"1"}, "stderr": {"1"}, "tail": {"all"}}
	if o.tail >= 0 {
		q.Set("tail", strconv.Itoa(o.tail))
	}
	if o.follow {
		q.Set("follow", "1")
	}
	if o.timestamps {
		q.Set("timestamps", "1")
	}
	resp, err := pods.DockerGet(ctx, "/containers/"+id+"/logs?"+q.Encode())
	if err != nil {
		return fmt.Errorf("ask Docker for the log of container %s: %w", pods.Short(id), err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 512)) // the status says enough
		return fmt.Errorf("docker has no log of container %s: %s %q; its logging driver may keep none", pods.Short(id),
			resp.Status, said)
	}
	if resp.Header.Get("Content-Type") == "application/vnd.docker.raw-stream" { // of a terminal
		_, err = io.Copy(p.out, resp.Body)
	} else {
		err = p.demultiplex(resp.Body)
	}
	if ctx.Err() != nil {
		return nil // the user's way to end it
	}
	return err
}

// demultiplex reads Docker's stream of frames: one byte of kind (1 stdout, 2 stderr), three zeros, the length, the
// text.
func (p *printer) demultiplex(r io.Reader) error {
	for {
		var head [8]byte
		if _, err := io.ReadFull(r, head[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("docker's log ends within a frame: %w", err)
		}
		to := p.out
		if head[0] == 2 {
			to = p.err
		}
		if _, err := io.CopyN(to, r, int64(binary.BigEndian.Uint32(head[4:]))); err != nil {
			return fmt.Errorf("docker's log: %w", err)
		}
	}
}
