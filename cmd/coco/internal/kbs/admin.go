// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/attestation/kbs"
	"github.com/coco-shim/coco/attestation/kbs/client"
	"github.com/coco-shim/coco/cmd/coco/internal/cli"
)

const (
	adminTimeout = time.Minute
	maxReply     = 64 << 20
)

// connection are the flags of commands that talk to a broker as administrator.
type connection struct{ url, cert, token string }

func (c *connection) flags(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringVar(&c.url, "url", "https://127.0.0.1:8080", "the broker")
	f.StringVar(&c.cert, "cert", "", "file with the broker's certificate or its CA's (PEM)")
	f.StringVar(&c.token, "token-file", "", "file with a token of an administrator")
}

// ask sends a request, and returns the body and the header of the answer. Out, if not nil, gets the body instead.
func (c *connection) ask(
	ctx context.Context, method, path string, body []byte, header http.Header, out io.Writer,
) ([]byte, http.Header, error) {
	u, err := url.Parse(c.url)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, nil, fmt.Errorf("--url %q is not one such as https://kbs.example:8080", c.url)
	}
	if c.cert == "" || c.token == "" {
		return nil, nil, errors.New("an administrator's command needs --cert and --token-file")
	}
	cert, err := readFile(c.cert)
	if err != nil {
		return nil, nil, fmt.Errorf("--cert: %w", err)
	}
	token, err := readFile(c.token)
	if err != nil {
		return nil, nil, fmt.Errorf("--token-file: %w", err)
	}
	transport, err := client.NewTransport(u.Hostname(), cert)
	if err != nil {
		return nil, nil, err
	}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	u.Path = strings.TrimSuffix(u.Path, "/") + kbs.Prefix + path
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("Authorization", "Bearer "+lastLine(string(token)))
	resp, err := transport.RoundTrip(req) // follows no redirect
	if err != nil {
		return nil, nil, fmt.Errorf("ask the broker at %s: %w", c.url, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK && out != nil {
		_, err = io.Copy(out, resp.Body)
		return nil, resp.Header, err
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return nil, nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, kbs.ParseError(resp.StatusCode, text)
	}
	return text, resp.Header, nil
}

// lastLine is the token in what the broker printed, with or without the line above it.
func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// send sends a JSON body.
func (c *connection) send(ctx context.Context, method, path string, v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	text, _, err := c.ask(ctx, method, path, body, nil, nil)
	return text, err
}

// list gets a path, and decodes the answer.
func (c *connection) list(ctx context.Context, path string, v any) error {
	text, _, err := c.ask(ctx, http.MethodGet, path, nil, nil, nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}

// input reads a file, or stdin for "-".
func input(cmd *cobra.Command, path string) ([]byte, error) { return cli.Input(cmd, path, kbs.MaxBody) }

// printJSON prints an answer of the broker, indented.
func printJSON(w io.Writer, text []byte) error {
	var out bytes.Buffer
	if err := json.Indent(&out, text, "", "  "); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, out.String())
	return err
}

func backupCommand(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Copy the store of a running broker",
		Long: "Copies the broker's store while it runs. The copy is encrypted as the store is, and opens with the same " +
			"key:\n" +
			"put it in place of DIR/state. Resources, policies, reference values and signing keys are in it; the audit log " +
			"is\n" +
			"not, so copy that file after this one.",
		Example: "  coco kbs backup --cert tls.crt --token-file admin.token state.backup",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			f, err := os.OpenFile(args[0], os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			_, _, err = c.ask(cmd.Context(), http.MethodGet, "/admin/backup", nil, nil, f)
			if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
				err = errors.Join(err, os.Remove(args[0]))
			}
			return err
		},
	}
	return cmd
}
