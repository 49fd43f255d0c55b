#compdef maintlock maintlock-wrap
# zsh completion for maintlock and maintlock-wrap. In ~/.zshrc, after compinit: eval "$(maintlock completion zsh)"

@cases@

_maintlock() {
  local command=run value prev=${words[CURRENT-1]}
  integer i=2
  if [[ ${words[1]:t} != maintlock-wrap ]]; then
    if ((CURRENT == 2)); then
      compadd -- @commands@ --help --version
      return
    fi
    command=${words[2]} i=3
  fi
  if [[ $command == run ]]; then  # from where on is it another program's command line?
    while ((i < CURRENT)); do
      case ${words[i]} in
        (--) ((i++)); _maintlock_other; return ;;
        (-*) [[ -z $(_maintlock_value run "${words[i]}") ]] || ((i++)) ;;
        (*) _maintlock_other; return ;;
      esac
      ((i++))
    done
    if ((i == CURRENT)) && [[ ${words[i]} != -* ]]; then _maintlock_other; return; fi
  fi
  if [[ ${words[CURRENT]} == --*=* ]]; then
    prev=${words[CURRENT]%%=*}
    compset -P '*='
  fi
  value=$(_maintlock_value "$command" "$prev")
  case $value in
    ('<task>') compadd -- ${(f)"$(command maintlock completion --names tasks 2>/dev/null)"} ;;
    ('<dir>') _files -/ ;;
    ('<file>') _files ;;
    ('<other>') ;;
    ('') compadd -- ${=$(_maintlock_follows "$command")} ;;
    (*) compadd -- ${=value} ;;
  esac
}

_maintlock_other() {  # complete the command line that begins at word $i
  shift $((i - 1)) words
  ((CURRENT -= i - 1))
  _normal
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _maintlock "$@"; else compdef _maintlock maintlock maintlock-wrap; fi
