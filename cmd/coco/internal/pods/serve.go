// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/metrics"
)

// Bounds of the node's server. Its clients are local, but any user of the host may be one.
const (
	maxRequests   = 4 // at once; further ones are told to come again
	maxHeader     = 8 << 10
	headerTimeout = 5 * time.Second
	writeTimeout  = time.Minute // the answers of all pods included
	answerAge     = time.Second // for which pods are not asked again
	maxPods       = 1000        // of which an answer tells
)

const unixScheme = "unix://"

// listen opens an address of the loopback interface, or a Unix socket for root alone. The figures name pods and their
// use, so no other address is taken: a proxy that authenticates its clients stands before this one.
func listen(ctx context.Context, address string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, unixScheme); ok {
		return listenUnix(ctx, path)
	}
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("--listen %s: expected IP:PORT of the loopback interface, such as 127.0.0.1:9469, or "+
			"unix:///PATH: %w", address, err)
	}
	if !a.Addr().IsLoopback() {
		return nil, fmt.Errorf("--listen %s is not on the loopback interface: everybody who reaches it could read which "+
			"pods run here; listen on 127.0.0.1 or at unix:///PATH, and put a proxy that authenticates before it", address)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--listen %s: %w", address, err)
	}
	return l, nil
}

// listenUnix listens on path. It replaces a socket that no process serves.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("--listen %s%s: the path of the socket is not absolute", unixScheme, path)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("--listen %s%s: something that is no socket is there; choose another path", unixScheme, path)
		}
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err == nil {
			return nil, errors.Join(fmt.Errorf("--listen %s%s: another process serves it", unixScheme, path), conn.Close())
		}
		// A socket of datagrams, or one whose queue is full, refuses in another way, and has a process.
		if !errors.Is(err, unix.ECONNREFUSED) {
			return nil, fmt.Errorf("--listen %s%s: a socket is there that another process may serve; choose another path, or "+
				"remove it: %w", unixScheme, path, err)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("--listen %s%s: %w", unixScheme, path, err)
		}
	}
	old := unix.Umask(0o177) // the command does nothing else at this time
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("--listen %s%s: %w", unixScheme, path, err)
	}
	return l, nil
}

// source asks the pods for all requests of a second together.
type source struct {
	dir string
	log io.Writer

	mu   sync.Mutex
	at   time.Time    // guarded by mu
	pods []podMetrics // guarded by mu; never changed once it is there
	lost int          // guarded by mu; pods that did not answer
}

func (s *source) ask(ctx context.Context) (pods []podMetrics, lost int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.at) < answerAge {
		return s.pods, s.lost
	}
	pods, err := gather(context.WithoutCancel(ctx), s.dir) // others get the answer too; each pod's time is bounded
	lost = 0
	if err != nil { // those that answered are worth having
		fmt.Fprintln(s.log, "coco:", err)
		if many, ok := err.(interface{ Unwrap() []error }); ok {
			lost = len(many.Unwrap())
		}
	}
	if len(pods) > maxPods {
		lost += len(pods) - maxPods
		pods = pods[:maxPods]
	}
	s.pods, s.lost, s.at = pods, lost, time.Now()
	return pods, lost
}

// text is the metrics of all pods. Each pod speaks for itself only, with at most 1,000 clean samples.
func (s *source) text(ctx context.Context) string {
	pods, lost := s.ask(ctx)
	own := metrics.New()
	own.Gauge("coco_node_pods", "Pods of this node that answered.", float64(len(pods)))
	own.Gauge("coco_node_pods_silent", "Pods of this node that did not answer.", float64(lost))
	clean := []podMetrics{{text: own.String()}}
	for _, p := range pods {
		m := metrics.New("pod", p.Pod)
		m.Adopt(p.text, "coco_")
		clean = append(clean, podMetrics{text: m.String()})
	}
	return merge(clean)
}

// serve answers until ctx ends.
func serve(ctx context.Context, l net.Listener, handler http.Handler) error {
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout, WriteTimeout: writeTimeout,
		IdleTimeout: writeTimeout, MaxHeaderBytes: maxHeader,
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// guarded lets through GET and HEAD of local names, a few at once. Pages of other sites that a browser on this host
// shows cannot read answers for names of their own (DNS rebinding).
func guarded(next http.Handler) http.Handler {
	slots := make(chan struct{}, maxRequests)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			http.Error(w, "this server only answers GET", http.StatusMethodNotAllowed)
			return
		}
		if !isLocal(r) {
			http.Error(w, "ask for this host by localhost or its loopback address", http.StatusForbidden)
			return
		}
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			next.ServeHTTP(w, r)
		default:
			w.Header().Set("Retry-After", "1")
			http.Error(w, "too many requests at once; ask again", http.StatusServiceUnavailable)
		}
	})
}

// isLocal says whether a client asked for a name of the loopback interface; over a Unix socket any name will do.
func isLocal(r *http.Request) bool {
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && a.Network() == "unix" {
		return true
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func (s *source) serveText(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = io.WriteString(w, s.text(r.Context())) // the client may be gone
}
