// This file answers: do two workloads recognise each other by their SVIDs?
//
// The protocol on top of TLS is the same for every peer: the client sends one
// line, the server answers with the client's SPIFFE ID, a space and the line.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

const talkTimeout = 15 * time.Second

func runMTLSServer(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("mtls-server", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:0", "address to bind")
	authorize := flags.String("authorize", "", "SPIFFE ID a client must have")
	count := flags.Int("count", 1, "connections to handle before the end, refused ones included")
	if err := flags.Parse(args); err != nil {
		return err
	}
	peer, err := spiffeid.FromString(*authorize)
	if err != nil {
		return fmt.Errorf("--authorize: %w", err)
	}

	source, err := newSource(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	mode := spiffetls.MTLSServerWithSource(tlsconfig.AuthorizeID(peer), source)
	listener, err := spiffetls.ListenWithMode(ctx, "tcp", *listen, mode)
	if err != nil {
		return err
	}
	defer listener.Close()
	if err := emit(map[string]any{"address": listener.Addr().String()}); err != nil {
		return err
	}

	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	for range *count {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		if err := emit(serveLine(conn)); err != nil {
			return err
		}
	}
	return nil
}

func serveLine(conn net.Conn) map[string]any {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(talkTimeout)); err != nil {
		return failure(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return failure(err)
	}
	id, err := spiffetls.PeerIDFromConn(conn)
	if err != nil {
		return failure(err)
	}
	if _, err := fmt.Fprintf(conn, "%s %s", id, line); err != nil {
		return failure(err)
	}
	return map[string]any{"peer_id": id.String(), "line": line[:len(line)-1]}
}

func failure(err error) map[string]any {
	return map[string]any{"error": err.Error()}
}

func runMTLSClient(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("mtls-client", flag.ContinueOnError)
	addr := flags.String("addr", "", "address of the server")
	authorize := flags.String("authorize", "", "SPIFFE ID the server must have")
	line := flags.String("line", "hello from go", "line to send")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := required(flags, "addr"); err != nil {
		return err
	}
	peer, err := spiffeid.FromString(*authorize)
	if err != nil {
		return fmt.Errorf("--authorize: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, talkTimeout)
	defer cancel()

	source, err := newSource(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	own, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	conn, err := spiffetls.DialWithMode(ctx, "tcp", *addr, spiffetls.MTLSClientWithSource(tlsconfig.AuthorizeID(peer), source))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(talkTimeout)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "%s\n", *line); err != nil {
		return err
	}
	reply, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	id, err := spiffetls.PeerIDFromConn(conn)
	if err != nil {
		return err
	}
	if expected := fmt.Sprintf("%s %s\n", own.ID, *line); reply != expected {
		return fmt.Errorf("server answered %q, expected %q", reply, expected)
	}
	return emit(map[string]any{"peer_id": id.String(), "own_id": own.ID.String(), "echo": *line})
}

func newSource(ctx context.Context) (*workloadapi.X509Source, error) {
	ctx, cancel := context.WithTimeout(ctx, talkTimeout)
	defer cancel()
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return nil, fmt.Errorf("open X509Source: %w", err)
	}
	return source, nil
}
